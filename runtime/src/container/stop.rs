//! StopContainer: the container's stop signal, time to obey, then SIGKILL for all its processes.

use std::{sync::Arc, time::Duration};

use bulkhead_proto::agent::{ProcessRef, SignalProcessRequest};

use super::{ContainerError, find};
use crate::{app::App, oci::signal::SIGKILL, records::ContainerState, sandbox::Pod};

const DEADLINE: Duration = Duration::from_secs(20);
/// How long SIGKILL may take: only a process stuck in the guest's kernel outlives it.
const KILL_PATIENCE: Duration = Duration::from_secs(20);
/// Nobody waits longer, whatever the request says.
const LONGEST: i64 = 30 * 86_400;

/// Stops a container within `timeout` seconds of grace. What does not run, or is not there, is
/// stopped.
pub async fn stop(app: &Arc<App>, id: &str, timeout: i64) -> Result<(), ContainerError> {
    let Some(record) = find::by_id(app, id)? else {
        return Ok(());
    };
    if record.status.state != ContainerState::Running {
        return Ok(());
    }
    let id = &record.meta.id;
    // A guest that is gone has taken its containers along; the records are about to say so.
    let Some(pod) = app.pods.get(&record.meta.sandbox_id) else {
        return Ok(());
    };
    let grace = Duration::from_secs(u64::try_from(timeout.clamp(0, LONGEST)).unwrap_or_default());
    if !grace.is_zero() {
        signal(&pod, id, record.meta.stop_signal, false).await?;
        let live = app.containers.live(id);
        if live.wait_ended(&app.records.containers, id, grace).await {
            return Ok(());
        }
        tracing::info!(
            container = id,
            seconds = grace.as_secs(),
            "not stopped in time: killing"
        );
    }
    kill(app, &pod, id).await
}

/// Kills all processes of a container and waits for its recorded end.
pub(super) async fn kill(app: &App, pod: &Pod, id: &str) -> Result<(), ContainerError> {
    signal(pod, id, SIGKILL, true).await?;
    let live = app.containers.live(id);
    if live
        .wait_ended(&app.records.containers, id, KILL_PATIENCE)
        .await
    {
        return Ok(());
    }
    Err(ContainerError::StillRunning {
        id: id.to_owned(),
        seconds: KILL_PATIENCE.as_secs(),
    })
}

async fn signal(pod: &Pod, id: &str, signal: u32, all: bool) -> Result<(), ContainerError> {
    let request = SignalProcessRequest {
        process: Some(ProcessRef {
            container_id: id.to_owned(),
            exec_id: String::new(),
        }),
        signal,
        all,
    };
    pod.agent
        .call("signal the container", DEADLINE, |mut agent| async move {
            agent.signal_process(request).await
        })
        .await?;
    Ok(())
}
