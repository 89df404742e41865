//! What happens when a process ends: its exit is recorded, with whether the OOM killer caused it,
//! and after a container's first process the rest of its cgroup is killed. What an exec leaves
//! running is left alone; the exec's cgroup is removed once it is empty.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::execs::ExecCgroup;
use super::{Container, Containers, cgroup};
use crate::async_fd;
use crate::process::exit::{Exit, ExitSender, ExitStatus};
use crate::report::Report;

/// How long the processes of a killed exec may take to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(5);
/// How often the removal of an exec's cgroup is tried.
const REMOVALS: usize = 8;

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
        let exit = Exit::now(status, status.is_kill() && cgroup::oom_kills(&cgroup) > 0);
        // With a PID namespace of its own the kernel has done this already.
        if let Err(error) = cgroup::kill(&cgroup) {
            tracing::warn!(error = %Report(&error), "processes left in a container's cgroup were not killed");
        }
        sender.exited(exit);
        containers.events.exited(&id, exit);
    });
}

/// Follows an exec to its end, and to that of what it leaves running. `closing`: the container is
/// going, and takes the exec's cgroup along.
pub fn exec(
    end: oneshot::Receiver<ExitStatus>,
    sender: ExitSender,
    cgroup: Option<Arc<ExecCgroup>>,
    closing: watch::Receiver<bool>,
) {
    tokio::spawn(async move {
        if let Ok(status) = end.await {
            let exit = Exit::now(status, false);
            sender.dead();
            // A kill is reported as done once all of the exec is gone.
            if let Some(killed) = cgroup.as_ref().filter(|cgroup| cgroup.is_killed()) {
                let deadline = Instant::now() + KILL_DEADLINE;
                if let Err(error) = cgroup::wait_empty(&killed.path, deadline).await {
                    tracing::warn!(error = %Report(&error), "processes of a killed exec are still running");
                }
            }
            sender.exited(exit);
            // Report first: removing the cgroup takes the kernel a while.
            tokio::task::yield_now().await;
        }
        if let Some(cgroup) = cgroup {
            remove_exec_cgroup(&cgroup.path, closing).await;
        }
    });
}

/// Removes an exec's cgroup once it is empty.
pub async fn remove_exec_cgroup(path: &Path, mut closing: watch::Receiver<bool>) {
    // Root of a privileged container can keep moving processes into it; then it stays until the
    // container is deleted.
    for _ in 0..REMOVALS {
        match std::fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %path.display(), "an exec's cgroup could not be removed");
                return;
            }
            _ => return,
        }
        let emptied = tokio::select! {
            emptied = cgroup::emptied(path) => emptied,
            // An error means that the container is gone, which is the same.
            _ = closing.wait_for(|closing| *closing) => return,
        };
        // The exec may have made cgroups below its own.
        if let Err(error) = emptied.and_then(|()| cgroup::remove(path)) {
            tracing::debug!(error = %Report(&error), "an exec's cgroup is not free yet");
        }
    }
}

/// Reports OOM kills in a container that survives them.
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
    let Ok(watch) = async_fd::watch(file, Interest::PRIORITY) else {
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
            // If the first process was the victim, its exit says so, and this task is aborted.
            tokio::task::yield_now().await;
            let Some(container) = container.upgrade() else {
                return;
            };
            if container.process.is_alive() {
                containers.events.oom(&container.id);
            }
        }
    }
}
