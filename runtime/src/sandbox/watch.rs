//! Watching pods' VMMs: one that ends takes its pod out of service, whoever ended it.

use std::sync::Arc;

use tokio::sync::watch;

use super::{Pod, SandboxError, now_ns};
use crate::{
    app::App,
    container,
    records::{SandboxState, VmExit},
    vmm::{self, JailDir},
};

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
        let exit = exit_of(&pod.jail).await;
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
}

/// The end of a VM that was being started, as an error.
pub(super) async fn died(jail: &JailDir) -> SandboxError {
    let VmExit {
        reason,
        message,
        console_tail,
        ..
    } = exit_of(jail).await;
    SandboxError::Died {
        reason,
        message,
        console_tail,
    }
}

pub(super) async fn exit_of(jail: &JailDir) -> VmExit {
    let (jail, at) = (jail.clone(), now_ns());
    let read = tokio::task::spawn_blocking(move || vmm::read_exit(&jail, at));
    read.await.unwrap_or_else(|e| VmExit {
        reason: "killed".to_owned(),
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
