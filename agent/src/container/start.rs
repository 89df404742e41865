//! Starting a built container.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{Container, ContainerError, Containers, Phase, lock};
use crate::launcher::message::{Failure, FailureKind};
use crate::{clock, watched};

/// From "start" to execve: nothing but the kernel's work of loading a program.
const DEADLINE: Duration = Duration::from_secs(30);
/// libcontainer's name for the socket on which a built container waits.
const NOTIFY_SOCKET: &str = "notify.sock";

impl Containers {
    /// Lets a built container's process go, and waits until it is the payload.
    ///
    /// # Errors
    /// When it was started before, or the payload cannot be executed.
    pub async fn start(&self, id: &str) -> Result<i64, ContainerError> {
        let container = self.get(id)?;
        let mut waiting = container.waiting.lock().await;
        let phase = container.phase();
        let status = match (phase, waiting.take()) {
            (Phase::Created, Some(status)) => status,
            (phase, status) => {
                *waiting = status;
                return Err(wrong_state(&container, phase));
            }
        };
        let notify = self.paths.runtime_state().join(id).join(NOTIFY_SOCKET);
        let started = timeout(DEADLINE, async {
            // The container accepts one connection and reads it to its end.
            let mut stream = UnixStream::connect(&notify).await?;
            stream.write_all(b"start").await?;
            stream.shutdown().await?;
            drop(stream);
            read_outcome(status).await
        });
        let outcome = started
            .await
            .map_err(|_| ContainerError::Deadline {
                id: id.to_owned(),
                what: "executing its command",
                seconds: DEADLINE.as_secs(),
            })?
            .map_err(|error| match error.kind() {
                // Its process is dead and was not started: somebody killed it.
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => {
                    wrong_state(&container, Phase::Exited)
                }
                _ => ContainerError::File {
                    what: "starting by",
                    path: notify,
                    error,
                },
            })?;
        if let Some(failure) = outcome {
            return Err(failure.into());
        }
        let now = clock::realtime_ns();
        *lock(&container.started_at_unix_ns) = Some(now);
        Ok(now)
    }
}

fn wrong_state(container: &Container, phase: Phase) -> ContainerError {
    ContainerError::WrongState {
        id: container.id.clone(),
        state: phase.name(),
        needed: Phase::Created.name(),
    }
}

/// The failure told on the status pipe, or none when execve (or death) closed it.
async fn read_outcome(status: OwnedFd) -> io::Result<Option<Failure>> {
    let pipe = watched::readable(status)?;
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let mut ready = pipe.readable().await?;
        match rustix::io::read(pipe.get_ref(), &mut buffer[..]) {
            Ok(0) => break,
            Ok(length) => bytes.extend_from_slice(buffer.get(..length).unwrap_or_default()),
            Err(Errno::AGAIN) => ready.clear_ready(),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if bytes.is_empty() {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&bytes).unwrap_or_else(
        |error| {
            Failure::new(
                FailureKind::Internal,
                format!("the container's report is malformed: {error}"),
            )
        },
    )))
}
