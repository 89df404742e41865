//! What happens when a process ends: its exit is recorded, a memory kill told apart, and for a
//! container's first process the rest of its cgroup is killed.

use std::sync::Arc;

use tokio::io::Interest;
use tokio::sync::oneshot;

use super::{Container, Containers, cgroup};
use crate::process::Process;
use crate::process::exit::{Exit, ExitSender, ExitStatus};
use crate::watched;

/// Follows a container's first process to its end.
pub fn first_process(
    containers: Arc<Containers>,
    container: &Arc<Container>,
    end: oneshot::Receiver<ExitStatus>,
    sender: ExitSender,
) {
    // Weak: a deleted container must not be kept by its own watcher.
    let (id, cgroup) = (container.id.clone(), container.cgroup.clone());
    let watcher = tokio::spawn(memory_kills(
        Arc::clone(&containers),
        Arc::downgrade(container),
    ));
    tokio::spawn(async move {
        let Ok(status) = end.await else { return };
        watcher.abort();
        sender.dead();
        // A shell says of a command that was killed: 128 + 9.
        let killed = matches!(
            status,
            ExitStatus::Signal(libc::SIGKILL) | ExitStatus::Code(137)
        );
        let exit = Exit::now(status, killed && cgroup::oom_kills(&cgroup) > 0);
        // With a PID namespace of its own the kernel has done this already.
        if let Err(error) = cgroup::kill(&cgroup) {
            tracing::warn!(%error, "what a container left running was not killed");
        }
        sender.exited(exit);
        containers.events.exited(&id, exit);
    });
}

/// Follows an exec to its end.
pub fn exec(end: oneshot::Receiver<ExitStatus>, sender: ExitSender) {
    tokio::spawn(async move {
        if let Ok(status) = end.await {
            sender.dead();
            sender.exited(Exit::now(status, false));
        }
    });
}

/// Announces memory kills in a container that survives them.
async fn memory_kills(containers: Arc<Containers>, container: std::sync::Weak<Container>) {
    let Some(path) = container
        .upgrade()
        .map(|container| container.cgroup.clone())
    else {
        return;
    };
    let Ok(file) = std::fs::File::open(path.join("memory.events")) else {
        return;
    };
    // The kernel marks the file POLLPRI when its text changes (cgroup-v2.rst).
    let Ok(watch) = watched::watch(file, Interest::PRIORITY) else {
        return;
    };
    let mut seen = cgroup::oom_kills(&path);
    loop {
        match watch.ready(Interest::PRIORITY).await {
            Ok(mut ready) => ready.clear_ready(),
            Err(_) => return,
        }
        let now = cgroup::oom_kills(&path);
        if now > seen {
            seen = now;
            // If its first process was the victim, its exit tells, and this task is ended.
            tokio::task::yield_now().await;
            let Some(container) = container.upgrade() else {
                return;
            };
            if is_alive(&container.process) {
                containers.events.oom(&container.id);
            }
        }
    }
}

/// A zombie is dead although it was not reaped yet.
fn is_alive(process: &Process) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid()));
    stat.is_ok_and(|stat| {
        let state = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.chars().next());
        !matches!(state, Some('Z' | 'X') | None)
    })
}
