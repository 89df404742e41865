//! Signals to containers, their removal, and the end of all of them.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use rustix::process::Signal;
use tokio::time::{Instant, timeout, timeout_at};

use super::{AnyProcess, Container, ContainerError, Containers, Slot, cgroup};
use crate::mutex::lock;
use crate::process::parse_signal;
use crate::report::Report;

/// How long killed processes may take to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

impl Containers {
    /// Sends a signal to a process, or with `all` to every process of its container. SIGKILL to an
    /// exec is the end of all that it started.
    ///
    /// # Errors
    /// For an unknown container, a bad signal, or if the kernel refuses. A process that is gone is
    /// not an error.
    pub fn signal(
        &self,
        container: &str,
        exec: &str,
        signal: u32,
        all: bool,
    ) -> Result<(), ContainerError> {
        let process = self.process(container, exec)?;
        let signal = parse_signal(signal)?;
        if all {
            return Ok(cgroup::signal(&self.paths.cgroup(container), signal)?);
        }
        match &process {
            AnyProcess::Exec(exec) if signal == Signal::KILL => exec.kill(),
            _ => Ok(process.signal(signal)?),
        }
    }

    /// Deletes a container, killing what is left of it. An unknown one is not an error.
    ///
    /// # Errors
    /// If its processes do not die in time; it can be tried again.
    pub async fn delete(
        &self,
        id: &str,
        release_layers: &[String],
        release_disks: &[String],
    ) -> Result<(), ContainerError> {
        let container = {
            let mut slots = lock(&self.slots);
            match slots.get(id) {
                None => None,
                Some(Slot::Busy) => {
                    return Err(ContainerError::WrongState {
                        id: id.to_owned(),
                        state: "being built or deleted",
                        needed: "built",
                    });
                }
                Some(Slot::Ready(container)) => {
                    let container = Arc::clone(container);
                    slots.insert(id.to_owned(), Slot::Busy);
                    Some(container)
                }
            }
        };
        if let Some(container) = container {
            // From here on no exec starts; waits below for those that are being started.
            let starting = lock(&container.execs).close();
            let ended = async {
                end(&container).await?;
                let _none = timeout(KILL_DEADLINE, starting.write())
                    .await
                    .map_err(|_| late(&container, "starting an exec"))?;
                Ok(())
            };
            if let Err(error) = ended.await {
                lock(&container.execs).reopen();
                lock(&self.slots).insert(id.to_owned(), Slot::Ready(container));
                return Err(error);
            }
            container.process.stop_pumps();
            lock(&container.execs).clear();
            self.clear(id, container.rootfs.clone()).await;
            self.disks.release_layers(&container.layers).await;
            lock(&self.slots).remove(id);
        }
        self.volumes.forget_disks(release_disks).await;
        self.disks.unmount_unused(release_layers).await?;
        Ok(self.disks.remove_unused(release_disks).await?)
    }

    /// Ends every container: SIGTERM, `grace`, SIGKILL.
    pub async fn end_all(&self, grace: Duration) {
        let containers = self.all();
        let deadline = Instant::now() + grace;
        for container in &containers {
            let _ = cgroup::signal(&container.cgroup, Signal::TERM);
        }
        let ends = containers.iter().map(|container| async {
            let mut exit = container.process.exit.clone();
            let _ = timeout_at(deadline, exit.wait()).await;
            if let Err(error) = end(container).await {
                tracing::warn!(error = %Report(&error), container = container.id, "powering off with processes left");
            }
        });
        join_all(ends).await;
    }
}

/// Kills everything in a container and waits until it is gone.
async fn end(container: &Container) -> Result<(), ContainerError> {
    cgroup::kill(&container.cgroup)?;
    let deadline = Instant::now() + KILL_DEADLINE;
    cgroup::wait_empty(&container.cgroup, deadline).await?;
    let mut exit = container.process.exit.clone();
    timeout_at(deadline, exit.wait())
        .await
        .map(drop)
        .map_err(|_| late(container, "reaping its process"))
}

fn late(container: &Container, what: &'static str) -> ContainerError {
    ContainerError::Deadline {
        id: container.id.clone(),
        what,
        seconds: KILL_DEADLINE.as_secs(),
    }
}
