//! How a pod's process ended: its VMM, or its agent on the host.

use std::sync::Arc;

use bulkhead_contract::exit::Reason;

use super::SandboxError;
use crate::{
    app::App,
    cgroup,
    clock::now_ns,
    machine::{self, Machine},
    records::{SandboxRecord, VmExit},
};

/// How a pod on record ended; a process killed by the pod's memory limit is named so.
pub(super) async fn of_pod(app: &App, record: &SandboxRecord) -> VmExit {
    let machine = machine::of_record(record, &app.config.paths);
    let mut exit = read(&machine).await;
    if exit.reason != Reason::Killed {
        return exit;
    }
    // On the host the containers are in the same cgroup, and one killed there says nothing of the
    // agent.
    if let Some(path) = record.cgroup().filter(|_| machine.owns_cgroup()) {
        let path = path.to_owned();
        let kills = tokio::task::spawn_blocking(move || cgroup::oom_kills(&path)).await;
        if kills.unwrap_or(0) > 0 {
            exit.message = "the kernel killed the VMM process because the memory limit of the \
                            pod's cgroup was reached"
                .to_owned();
        }
    }
    exit
}

/// The end of a pod that was being started, as an error.
pub(super) async fn while_starting(app: &App, record: &SandboxRecord) -> SandboxError {
    let VmExit {
        reason,
        message,
        console_tail,
        ..
    } = of_pod(app, record).await;
    // The error has a line of it; a kernel's report of its fault takes the whole.
    if !console_tail.is_empty() {
        tracing::warn!(pod = %record.id, "the end of its console:\n{console_tail}");
    }
    SandboxError::Died {
        reason,
        message,
        console_tail,
    }
}

/// For the operator: an end that nobody asked for is a warning.
pub(super) fn log(id: &str, exit: &VmExit) {
    if exit.reason.is_orderly() {
        tracing::info!(pod = %id, reason = %exit.reason, "the pod has ended");
    } else {
        tracing::warn!(
            pod = %id, reason = %exit.reason, console = last_line(&exit.console_tail),
            "the pod has ended: {}", exit.message
        );
    }
}

async fn read(machine: &Arc<dyn Machine>) -> VmExit {
    let (machine, at) = (Arc::clone(machine), now_ns());
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
