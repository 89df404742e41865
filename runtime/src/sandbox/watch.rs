//! Watching pods' VMMs: one that ends takes its pod out of service, whoever ended it.

use std::sync::Arc;

use bulkhead_proto::cri::ContainerEventType;
use tokio::sync::watch;

use super::{Pod, SandboxError, now_ns};
use crate::{
    app::App,
    cgroup, container, events,
    records::{Resource, SandboxState, VmExit},
    vmm::{self, JailDir},
};

/// As `vmm::read_exit` calls the end of a VMM that wrote none.
const KILLED: &str = "killed";

/// Tells the pod's handle how its VM ended.
pub type Ended = watch::Sender<Option<VmExit>>;

/// Watches a pod until its VM ends.
pub(super) fn watch(app: &Arc<App>, pod: &Arc<Pod>, ended: Ended) {
    let (app, pod) = (Arc::clone(app), Arc::clone(pod));
    tokio::spawn(async move {
        if let Err(error) = pod.process.wait().await {
            // Without the wait nobody would notice the end: take it as ended, and end it.
            tracing::error!(pod = %pod.id, "cannot wait for the VMM: {error}");
            let _gone = pod.process.kill();
        }
        let exit = exit_of_pod(&app, &pod.id, &pod.jail).await;
        gone(&app, &pod.id, &exit).await;
        ended.send_replace(Some(exit));
    });
}

/// Records that a pod's VM has ended.
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
        Ok(_) if matches!(exit.reason.as_str(), "power_off" | "stopped") => {
            tracing::info!(pod = %id, reason = exit.reason, "the VM has ended");
        }
        Ok(_) => tracing::warn!(
            pod = %id, reason = exit.reason, console = last_line(&exit.console_tail),
            "the VM has ended: {}", exit.message
        ),
        // Removed meanwhile, or the database fails and the next start finds out.
        Err(e) => tracing::warn!(pod = %id, "the VM's end is not on record: {e}"),
    }
    let why = format!(
        "the pod's virtual machine ended ({}): {}",
        exit.reason, exit.message
    );
    container::pod_gone(app, id, &why).await;
    if let Some(record) = app.records.sandboxes.get(id) {
        events::sandbox(app, ContainerEventType::ContainerStoppedEvent, &record);
    }
}

/// How the VM of a pod on record ended; a process killed by the pod's memory limit is named so.
pub(super) async fn exit_of_pod(app: &App, id: &str, jail: &JailDir) -> VmExit {
    let mut exit = exit_of(jail).await;
    if exit.reason != KILLED {
        return exit;
    }
    let record = app.records.sandboxes.get(id);
    let resources = record.iter().flat_map(|record| record.resources.iter());
    let cgroup = resources.into_iter().find_map(|resource| match resource {
        Resource::Cgroup { path } => Some(path.clone()),
        _ => None,
    });
    if let Some(path) = cgroup {
        let kills = tokio::task::spawn_blocking(move || cgroup::oom_kills(&path)).await;
        if kills.unwrap_or(0) > 0 {
            exit.message = "the kernel killed the VMM process because the memory limit of the \
                            pod's cgroup was reached"
                .to_owned();
        }
    }
    exit
}

/// The end of a VM that was being started, as an error.
pub(super) async fn died(app: &App, id: &str, jail: &JailDir) -> SandboxError {
    let VmExit {
        reason,
        message,
        console_tail,
        ..
    } = exit_of_pod(app, id, jail).await;
    // The error has a line of it; a kernel's report of its fault takes the whole.
    if !console_tail.is_empty() {
        tracing::warn!(pod = %id, "the end of the guest's console:\n{console_tail}");
    }
    SandboxError::Died {
        reason,
        message,
        console_tail,
    }
}

async fn exit_of(jail: &JailDir) -> VmExit {
    let (jail, at) = (jail.clone(), now_ns());
    let read = tokio::task::spawn_blocking(move || vmm::read_exit(&jail, at));
    read.await.unwrap_or_else(|e| VmExit {
        reason: KILLED.to_owned(),
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
