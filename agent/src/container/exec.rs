//! Further processes in a container.

use std::sync::Arc;

use bulkhead_proto::agent::ExecRequest as Wanted;

use super::{Container, ContainerError, Containers, ExecSlot, Phase, check_id, lock, spec, watch};
use crate::launcher::message::{ExecRequest, Request};
use crate::process::{Process, Reading, Streams, exit};

impl Containers {
    /// Starts a process in a running container. Its output is for the caller to take.
    ///
    /// # Errors
    /// When the container does not run or the command cannot be executed; nothing is left then.
    pub async fn run_exec(&self, wanted: Wanted) -> Result<Arc<Process>, ContainerError> {
        let container = self.get(&wanted.container_id)?;
        check_id("exec", &wanted.exec_id)?;
        let phase = container.phase();
        if phase != Phase::Running {
            return Err(ContainerError::WrongState {
                id: container.id.clone(),
                state: phase.name(),
                needed: Phase::Running.name(),
            });
        }
        let process = spec::exec_process(
            &container.template,
            &wanted.args,
            &wanted.env,
            &wanted.cwd,
            wanted.tty,
        )?;
        reserve(&container, &wanted.exec_id)?;
        match self.launch_exec(&container, &wanted, process).await {
            Ok(process) => {
                let slot = ExecSlot::Ready(Arc::clone(&process));
                lock(&container.execs).insert(wanted.exec_id, slot);
                Ok(process)
            }
            Err(error) => {
                lock(&container.execs).remove(&wanted.exec_id);
                Err(error)
            }
        }
    }

    async fn launch_exec(
        &self,
        container: &Container,
        wanted: &Wanted,
        process: oci_spec::runtime::Process,
    ) -> Result<Arc<Process>, ContainerError> {
        let (streams, stdio) = if wanted.tty {
            (Streams::default(), None)
        } else {
            let (streams, stdio) = Streams::pipes(wanted.stdin)?;
            (streams, Some(stdio))
        };
        let request = Request::Exec(Box::new(ExecRequest {
            target_pid: container.process.pid(),
            cgroup: container.cgroup.clone(),
            process,
            filter: container.filter.clone(),
            map: self.user_namespace.get().copied(),
            tty: wanted.tty,
        }));
        let launched = self.launcher.launch(request, stdio).await?;
        let (sender, exit) = exit::channel();
        watch::exec(launched.end, sender);
        let pid = launched.pid;
        match Process::new(
            pid,
            streams,
            launched.terminal,
            wanted.stdin,
            Reading::Direct,
            exit,
        ) {
            Ok(process) => Ok(Arc::new(process)),
            Err(error) => {
                // Without its streams nobody could ever tell it anything.
                if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
                Err(error.into())
            }
        }
    }

    /// Forgets an exec, killing it if it still runs. One that is not there is no error, nor is a
    /// container that is not.
    ///
    /// # Errors
    /// When the kernel refuses to kill it.
    pub fn delete_exec(&self, container: &str, exec: &str) -> Result<(), ContainerError> {
        // One that is gone, or going just now, takes its execs along.
        let Ok(container) = self.get(container) else {
            return Ok(());
        };
        let mut execs = lock(&container.execs);
        if let Some(ExecSlot::Ready(process)) = execs.get(exec) {
            process.signal(libc::SIGKILL.unsigned_abs())?;
            process.stop_pumps();
            execs.remove(exec);
        }
        Ok(())
    }
}

fn reserve(container: &Container, exec: &str) -> Result<(), ContainerError> {
    let mut execs = lock(&container.execs);
    if execs.contains_key(exec) {
        return Err(ContainerError::ExecExists {
            container: container.id.clone(),
            exec: exec.to_owned(),
        });
    }
    execs.insert(exec.to_owned(), ExecSlot::Starting);
    Ok(())
}
