//! Off the async threads: reading the configuration and the cache of results.

use std::path::PathBuf;

use crate::network::NetworkError;

/// Runs blocking file work off the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| {
        Err(NetworkError::Thread {
            path: PathBuf::new(),
            what: "for CNI files ended badly",
        })
    })
}
