//! Starting a built container.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use tokio::time::timeout;

use super::{Container, ContainerError, Containers, Phase};
use crate::launcher::worker;
use crate::mutex::lock;
use crate::{async_fd, clock};

/// From "start" to execve: nothing but the kernel's work of loading a program.
const DEADLINE: Duration = Duration::from_secs(30);
/// The longest report of a failure; it names a path.
const MAX_TOLD: usize = 64 * 1024;

impl Containers {
    /// Releases a created container's process, and waits until it has executed its command.
    ///
    /// # Errors
    /// If it was started before, or the payload cannot be executed.
    pub async fn start(&self, id: &str) -> Result<i64, ContainerError> {
        let container = self.get(id)?;
        let mut waiting = container.waiting.lock().await;
        let phase = container.phase();
        let process = match (phase, waiting.take()) {
            (Phase::Created, Some(process)) => process,
            (phase, process) => {
                *waiting = process;
                return Err(wrong_state(&container, phase));
            }
        };
        let file = |error: io::Error| ContainerError::File {
            what: "starting the process of",
            path: id.into(),
            error,
        };
        match rustix::io::write(&process.go, b"s") {
            Ok(_) => {}
            // Its process is dead and was not started: somebody killed it.
            Err(Errno::PIPE) => return Err(wrong_state(&container, Phase::Exited)),
            Err(error) => return Err(file(error.into())),
        }
        let report = timeout(DEADLINE, read_to_end(process.status))
            .await
            .map_err(|_| ContainerError::Deadline {
                id: id.to_owned(),
                what: "executing its command",
                seconds: DEADLINE.as_secs(),
            })?
            .map_err(file)?;
        let outcome =
            worker::outcome(&report, &process.page).map_err(|error| file(error.into()))?;
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

/// Reads the status pipe until execve (or death) closes it.
async fn read_to_end(status: OwnedFd) -> io::Result<Vec<u8>> {
    let pipe = async_fd::readable(status)?;
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let mut ready = pipe.readable().await?;
        match rustix::io::read(pipe.get_ref(), &mut buffer[..]) {
            Ok(0) => return Ok(bytes),
            Ok(length) if bytes.len() < MAX_TOLD => {
                bytes.extend_from_slice(buffer.get(..length).unwrap_or_default());
            }
            Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
            Err(Errno::AGAIN) => ready.clear_ready(),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
