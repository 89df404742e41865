//! Blocking work, off the thread that serves.

use tokio::task::JoinError;

/// Work that did not return: it panicked, or the agent is shutting down.
#[derive(Debug, thiserror::Error)]
#[error("waiting for blocking work in the agent")]
pub struct EndedEarly(#[from] JoinError);

/// Runs work on a thread for blocking work.
///
/// # Errors
/// The work's own, and [`EndedEarly`].
pub async fn run<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<EndedEarly> + Send + 'static,
{
    tokio::task::spawn_blocking(work)
        .await
        .map_err(EndedEarly)?
}
