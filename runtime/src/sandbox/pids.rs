//! How many processes a pod may have (the kubelet's `podPidsLimit`, `pids.max` of the pod's cgroup): the
//! node's kernel counts the VMM's threads there, so the guest is told the number for its own.

use std::{path::Path, time::Duration};

use bulkhead_proto::agent::ResizeGuestRequest;

use super::{Pod, SandboxError};
use crate::{app::App, cgroup::pids_limit, records::MachineKind, task::blocking};

/// One write in the guest.
const DEADLINE: Duration = Duration::from_secs(30);

/// The tightest limit on the pod's cgroup, as the agent's protocol has it: 0 is none.
pub(super) async fn limit(app: &App, cgroup: &Path) -> Result<u64, SandboxError> {
    let (root, cgroup) = (app.config.cgroup.root.clone(), cgroup.to_owned());
    let limit = blocking(move || {
        pids_limit(&root, &cgroup).map_err(|source| SandboxError::Os {
            action: "read the limit on processes of the pod's cgroup".to_owned(),
            source,
        })
    });
    // A pod without any process is not one; 0 would lift the limit.
    Ok(limit.await?.map_or(0, |limit| limit.max(1)))
}

/// Tells the guest the limit as it is now.
pub(super) async fn carry(app: &App, pod: &Pod, cgroup: &Path) -> Result<(), SandboxError> {
    if pod.machine.kind() != MachineKind::Vm {
        return Ok(());
    }
    let request = ResizeGuestRequest {
        pids_limit: Some(limit(app, cgroup).await?),
        ..ResizeGuestRequest::default()
    };
    let told = pod.agent.call(
        "limit the guest's processes",
        DEADLINE,
        |mut agent| async move { agent.resize_guest(request).await },
    );
    told.await?;
    Ok(())
}
