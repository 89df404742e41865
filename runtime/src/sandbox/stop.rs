//! StopPodSandbox: containers end, the VM (or the agent on the host) is stopped, and the pod is
//! settled. May be repeated; each part has its deadline, and behind the last stands SIGKILL.

use std::{sync::Arc, time::Duration};

use super::{Pod, SandboxError, find, release::Extent, settle::settle_surely};
use bulkhead_proto::agent::SyncVolumesRequest;

use crate::{
    app::App,
    container,
    error::chain,
    records::{SandboxRecord, SandboxState},
    task::detached,
    volumes::pod_volumes,
};

/// Containers get SIGKILL; their output is drained.
const CONTAINERS_DEADLINE: Duration = Duration::from_secs(60);
/// Disks can be slow, and much may be unwritten; a guest that is dead does not answer at all.
const SYNC_DEADLINE: Duration = Duration::from_secs(30);

/// Stops a pod; an unknown id is no error. Goes on to its end even if the caller is dropped.
pub async fn stop(app: Arc<App>, id: &str) -> Result<(), SandboxError> {
    let Some(record) = find::by_id(&app, id)? else {
        return Ok(());
    };
    let id = record.id.clone();
    detached(async move {
        let _turn = app.pods.turn(&id).await;
        stop_in_turn(&app, &id).await
    })
    .await
}

/// Stops a pod whose turn the caller has.
pub(super) async fn stop_in_turn(app: &Arc<App>, id: &str) -> Result<(), SandboxError> {
    let Some(record) = app.records.sandboxes.get(id) else {
        return Ok(());
    };
    match record.state {
        SandboxState::Creating => {
            return Err(SandboxError::NotReady {
                id: id.to_owned(),
                why: "it is still being started".to_owned(),
            });
        }
        SandboxState::Released => return Ok(()),
        SandboxState::Ready | SandboxState::NotReady => {}
    }
    if record.state == SandboxState::Ready {
        let stopping = |record: &mut SandboxRecord| record.state = SandboxState::NotReady;
        app.records.sandboxes.update(id, stopping).await?;
    }

    let containers = container::pod_stopping(app, id);
    if tokio::time::timeout(CONTAINERS_DEADLINE, containers)
        .await
        .is_err()
    {
        tracing::warn!(pod = %id, "the containers did not end in time; they end with the pod");
    }
    if let Some(pod) = app.pods.get(id) {
        write_out(app, &pod).await;
        end_machine(app, &pod).await;
    }
    settle_surely(app, id, Extent::Whole).await?;
    tracing::info!(pod = %id, "the pod is stopped");
    Ok(())
}

/// Has the guest write out what is the host's: shared volumes and block devices. What a dead
/// container had open is written by then as a rule; this makes it certain.
async fn write_out(app: &Arc<App>, pod: &Pod) {
    if !pod_volumes::has_writes(app, &pod.id) {
        return;
    }
    let synced = pod
        .agent
        .call("write volumes out", SYNC_DEADLINE, |mut agent| async move {
            agent.sync_volumes(SyncVolumesRequest {}).await
        })
        .await;
    if let Err(error) = synced {
        tracing::warn!(
            pod = %pod.id,
            "the last writes to its volumes may be lost: {}", chain(&error)
        );
    }
}

/// Has the VMM end the VM or the agent on the host itself, or kills it. Failures are left to the
/// settling, which kills by the record.
async fn end_machine(app: &Arc<App>, pod: &Pod) {
    let limit = app.config.sandbox.stop_timeout;
    let stop = async {
        let asked = pod.machine.stop(&pod.agent, limit).await;
        asked.map_err(|error| chain(&error))?;
        pod.process.wait().await.map_err(|e| e.to_string())
    };
    let stopped = tokio::time::timeout(limit, stop)
        .await
        .unwrap_or_else(|_| Err(format!("it did not stop within {} s", limit.as_secs())));
    if let Err(why) = stopped {
        tracing::warn!(pod = %pod.id, "the pod's process is killed: {why}");
        if let Err(error) = pod.process.kill() {
            tracing::warn!(pod = %pod.id, "cannot kill the pod's process: {error}");
        }
    }
}
