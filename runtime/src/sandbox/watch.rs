//! Watching pods' processes (VMMs, agents on the host): one that ends takes its pod out of service,
//! whoever ended it.

use std::{path::PathBuf, sync::Arc};

use bulkhead_contract::exit::Reason;
use bulkhead_proto::cri::ContainerEventType;
use tokio::sync::watch;

use super::{Machine, Pod, SandboxError, now_ns};
use crate::{
    app::App,
    cgroup, container, events,
    records::{MachineKind, Resource, SandboxState, VmExit},
};

/// Tells the pod's handle how its process ended.
pub type Ended = watch::Sender<Option<VmExit>>;

/// Watches a pod until its process ends.
pub(super) fn watch(app: &Arc<App>, pod: &Arc<Pod>, ended: Ended) {
    let (app, pod) = (Arc::clone(app), Arc::clone(pod));
    tokio::spawn(async move {
        if let Err(error) = pod.process.wait().await {
            // Without the wait nobody would notice the end: take it as ended, and end it.
            tracing::error!(pod = %pod.id, "cannot wait for the pod's process: {error}");
            let _gone = pod.process.kill();
        }
        let exit = exit_of_pod(&app, &pod.id, &pod.machine).await;
        if pod.machine.kind() == MachineKind::Host {
            // A VM takes its containers with it; on the host they would go on without their agent.
            kill_left(&app, &pod.id).await;
        }
        gone(&app, &pod.id, &exit).await;
        ended.send_replace(Some(exit));
    });
}

/// Records that a pod's process has ended.
pub(super) async fn gone(app: &Arc<App>, id: &str, exit: &VmExit) {
    app.pods.remove(id);
    let kept = exit.clone();
    let update = app.records.sandboxes.update(id, move |record| {
        if matches!(record.state, SandboxState::Ready) {
            record.state = SandboxState::NotReady;
        }
        record.exit.get_or_insert(kept);
    });
    match update.await {
        Ok(_) if exit.reason.is_orderly() => {
            tracing::info!(pod = %id, reason = %exit.reason, "the pod has ended");
        }
        Ok(_) => tracing::warn!(
            pod = %id, reason = %exit.reason, console = last_line(&exit.console_tail),
            "the pod has ended: {}", exit.message
        ),
        // Removed meanwhile, or the database fails and the next start finds out.
        Err(e) => tracing::warn!(pod = %id, "the pod's end is not on record: {e}"),
    }
    let why = format!("the pod ended ({}): {}", exit.reason, exit.message);
    container::pod_gone(app, id, &why).await;
    if let Some(record) = app.records.sandboxes.get(id) {
        events::sandbox(app, ContainerEventType::ContainerStoppedEvent, &record);
    }
}

/// How a pod on record ended; a process killed by the pod's memory limit is named so.
pub(super) async fn exit_of_pod(app: &App, id: &str, machine: &Machine) -> VmExit {
    let mut exit = exit_of(machine).await;
    if exit.reason != Reason::Killed {
        return exit;
    }
    // On the host the containers are in the same cgroup, and one killed there says nothing of the
    // agent.
    if let (Some(path), MachineKind::Vm) = (cgroup_of(app, id), machine.kind()) {
        let kills = tokio::task::spawn_blocking(move || cgroup::oom_kills(&path)).await;
        if kills.unwrap_or(0) > 0 {
            exit.message = "the kernel killed the VMM process because the memory limit of the \
                            pod's cgroup was reached"
                .to_owned();
        }
    }
    exit
}

fn cgroup_of(app: &App, id: &str) -> Option<PathBuf> {
    let record = app.records.sandboxes.get(id)?;
    record.resources.iter().find_map(|resource| match resource {
        Resource::Cgroup { path } => Some(path.clone()),
        _ => None,
    })
}

/// Kills what is left in the cgroup of a pod; its release tries again.
async fn kill_left(app: &App, id: &str) {
    let Some(path) = cgroup_of(app, id) else {
        return;
    };
    let killed = tokio::task::spawn_blocking(move || cgroup::kill(&path)).await;
    if let Ok(Err(error)) = killed {
        tracing::warn!(pod = %id, "containers may be left: {}", crate::error::chain(&error));
    }
}

/// The end of a pod that was being started, as an error.
pub(super) async fn died(app: &App, id: &str, machine: &Machine) -> SandboxError {
    let VmExit {
        reason,
        message,
        console_tail,
        ..
    } = exit_of_pod(app, id, machine).await;
    // The error has a line of it; a kernel's report of its fault takes the whole.
    if !console_tail.is_empty() {
        tracing::warn!(pod = %id, "the end of its console:\n{console_tail}");
    }
    SandboxError::Died {
        reason,
        message,
        console_tail,
    }
}

async fn exit_of(machine: &Machine) -> VmExit {
    let (machine, at) = (machine.clone(), now_ns());
    let read = tokio::task::spawn_blocking(move || machine.read_exit(at));
    read.await.unwrap_or_else(|e| VmExit {
        reason: Reason::Killed,
        message: e.to_string(),
        console_tail: String::new(),
        at,
    })
}

fn last_line(text: &str) -> &str {
    text.lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("")
}
