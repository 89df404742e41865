//! Off the async threads: work in namespaces and their directories.

use std::path::Path;

use super::NetworkError;

/// Runs blocking work on the namespace at `path` off the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| {
        Err(NetworkError::Thread {
            path: path.to_owned(),
            what: "ended badly",
        })
    })
}
