//! Further processes in a container. Each has a cgroup of its own below the container's, so that it
//! can be killed with all that it started; the container's limits apply, as no controller is
//! enabled below it. How an exec ends is `monitor`'s business.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bulkhead_proto::agent;
use rustix::io::Errno;
use tokio::sync::{OwnedRwLockReadGuard, watch as channel};

use super::execs::{Exec, ExecCgroup};
use super::{Container, ContainerError, Containers, Phase, check_id, monitor, spec};
use crate::launcher::LaunchError;
use crate::launcher::message::{ExecRequest, Request};
use crate::mutex::lock;
use crate::process::{Process, Reading, Streams, exit, kill_new};

/// How many cgroups of execs a container can have at one time. What is started beyond shares the
/// container's own.
const MAX_CGROUPS: u32 = 1024;

/// What an exec that is being started holds.
struct Reservation {
    cgroup: Option<PathBuf>,
    closing: channel::Receiver<bool>,
    _starting: OwnedRwLockReadGuard<()>,
}

impl Containers {
    /// Starts a process in a running container. Its output is for the caller to take.
    ///
    /// # Errors
    /// If the container does not run or the command cannot be executed; nothing is left then.
    pub async fn run_exec(&self, wanted: agent::ExecRequest) -> Result<Arc<Exec>, ContainerError> {
        let container = self.get(&wanted.container_id)?;
        check_id("exec", &wanted.exec_id)?;
        let phase = container.phase();
        if phase != Phase::Running {
            return Err(not_running(&container, phase.name()));
        }
        let reserved = reserve(&container, &wanted.exec_id)?;
        match self.launch_in(&container, &wanted, &reserved).await {
            Ok(exec) => {
                let exec = Arc::new(exec);
                let slot = Some(Arc::clone(&exec));
                lock(&container.execs).slots.insert(wanted.exec_id, slot);
                Ok(exec)
            }
            Err(error) => {
                lock(&container.execs).slots.remove(&wanted.exec_id);
                // Whichever step failed, this is why.
                if !container.process.is_alive() {
                    return Err(not_running(&container, Phase::Exited.name()));
                }
                Err(error)
            }
        }
    }

    async fn launch_in(
        &self,
        container: &Container,
        wanted: &agent::ExecRequest,
        reserved: &Reservation,
    ) -> Result<Exec, ContainerError> {
        let closing = || reserved.closing.clone();
        let Some(path) = reserved.cgroup.clone() else {
            return self.launch_exec(container, wanted, None, closing()).await;
        };
        let own = Arc::new(ExecCgroup::new(path));
        let launched = self.launch_exec(container, wanted, Some(&own), closing());
        let error = match launched.await {
            Ok(exec) => return Ok(exec),
            Err(error) => error,
        };
        let retry = matches!(error, ContainerError::Launch(LaunchError::Failed(_)))
            && !is_usable(&own.path);
        let closing_then = closing();
        // The process that was to become it may still be in the cgroup.
        tokio::spawn(async move { monitor::remove_exec_cgroup(&own.path, closing_then).await });
        if retry {
            return self.launch_exec(container, wanted, None, closing()).await;
        }
        Err(error)
    }

    async fn launch_exec(
        &self,
        container: &Container,
        wanted: &agent::ExecRequest,
        cgroup: Option<&Arc<ExecCgroup>>,
        closing: channel::Receiver<bool>,
    ) -> Result<Exec, ContainerError> {
        let process = spec::exec_process(&container.template, &wanted.args, wanted.tty)?;
        let (streams, stdio) = if wanted.tty {
            (Streams::default(), None)
        } else {
            let (streams, stdio) = Streams::pipes(wanted.stdin)?;
            (streams, Some(stdio))
        };
        let request = Request::Exec(Box::new(ExecRequest {
            target_pid: container.process.pid(),
            cgroup: cgroup.map_or(&container.cgroup, |own| &own.path).clone(),
            process,
            filter: container.filter.clone(),
            map: self.user_namespace.get().copied(),
            tty: wanted.tty,
        }));
        let target = container.process.pidfd();
        let target = target.ok_or_else(|| not_running(container, Phase::Exited.name()))?;
        let launched = self
            .launcher
            .launch(request, stdio, &[target.as_fd()])
            .await?;
        let (sender, exit) = exit::channel();
        monitor::exec(launched.end, sender, cgroup.cloned(), closing);
        let pid = launched.pid;
        match Process::new(
            pid,
            streams,
            launched.terminal,
            wanted.stdin,
            Reading::Direct,
            exit,
        ) {
            Ok(process) => Ok(Exec {
                process,
                cgroup: cgroup.cloned(),
            }),
            Err(error) => {
                // Without its streams it is of no use to anyone.
                kill_new(pid);
                Err(error.into())
            }
        }
    }

    /// Deletes an exec, killing it if it still runs. A missing exec is not an error, nor is a
    /// missing container.
    ///
    /// # Errors
    /// If the kernel refuses to kill it.
    pub fn delete_exec(&self, container: &str, exec: &str) -> Result<(), ContainerError> {
        // The execs of a container that is being deleted go with it.
        let Ok(container) = self.get(container) else {
            return Ok(());
        };
        let mut execs = lock(&container.execs);
        if let Some(found) = execs.get(exec) {
            found.kill()?;
            found.process.stop_pumps();
            execs.slots.remove(exec);
        }
        Ok(())
    }
}

fn not_running(container: &Container, state: &'static str) -> ContainerError {
    ContainerError::WrongState {
        id: container.id.clone(),
        state,
        needed: Phase::Running.name(),
    }
}

/// Takes the id and makes the cgroup; both before the container can be closed.
fn reserve(container: &Container, exec: &str) -> Result<Reservation, ContainerError> {
    let mut execs = lock(&container.execs);
    let starting = Arc::clone(&execs.starting).try_read_owned();
    let starting = match starting {
        Ok(starting) if !*execs.closing.borrow() => starting,
        _ => return Err(not_running(container, "being deleted")),
    };
    if execs.slots.contains_key(exec) {
        return Err(ContainerError::ExecExists {
            container: container.id.clone(),
            exec: exec.to_owned(),
        });
    }
    let cgroup = match make_cgroup(&container.cgroup) {
        Ok(made) => made,
        Err(Errno::NOENT | Errno::NODEV) => {
            return Err(not_running(container, Phase::Exited.name()));
        }
        // A limit of the container's own making (cgroup.max.descendants), or no memory.
        Err(error) => {
            tracing::debug!(%error, id = container.id, "an exec shares the cgroup of its container");
            None
        }
    };
    execs.slots.insert(exec.to_owned(), None);
    Ok(Reservation {
        cgroup,
        closing: execs.closing.subscribe(),
        _starting: starting,
    })
}

/// Takes the first free name: few names keep metrics by cgroup few, too.
fn make_cgroup(container: &Path) -> Result<Option<PathBuf>, Errno> {
    for number in 0..MAX_CGROUPS {
        let path = container.join(format!("exec-{number}"));
        match rustix::fs::mkdir(&path, rustix::fs::Mode::from_raw_mode(0o755)) {
            Ok(()) => return Ok(Some(path)),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Whether processes can be put there. The root of a privileged container may have removed it, or
/// have made its own cgroup one for threads, below which there are none for processes (cgroup-v2.rst,
/// Threads).
fn is_usable(cgroup: &Path) -> bool {
    let kind = fs::read_to_string(cgroup.join("cgroup.type"));
    kind.is_ok_and(|kind| kind.trim() == "domain")
}
