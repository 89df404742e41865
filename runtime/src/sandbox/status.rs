//! PodSandboxStatus: from the record.

use std::{collections::HashMap, time::Duration};

use bulkhead_proto::cri as v1;
use serde_json::json;

use super::{SandboxError, find};
use crate::{app::App, clock::now_ns, machine, records::SandboxRecord, status};

/// For the VMM's figures, which are only an operator's wish.
const METRICS_DEADLINE: Duration = Duration::from_secs(2);

/// One pod's status; from the record alone unless it is to be verbose.
pub async fn status(
    app: &App,
    id: &str,
    verbose: bool,
) -> Result<v1::PodSandboxStatusResponse, SandboxError> {
    let record = find(app, id)?;
    let mut info = HashMap::new();
    if verbose {
        info.insert(
            "info".to_owned(),
            verbose_info(app, &record).await.to_string(),
        );
    }
    // The time is that of the containers' statuses: a kubelet that follows events goes by it.
    let timestamp = now_ns();
    let (status, containers_statuses) = status::snapshot(app, &record);
    Ok(v1::PodSandboxStatusResponse {
        status: Some(status),
        info,
        containers_statuses,
        timestamp,
    })
}

/// What an operator wants to know: the VM's size, process and files, how long the start took, how
/// it ended.
async fn verbose_info(app: &App, record: &SandboxRecord) -> serde_json::Value {
    // The VMM's own figures (docs/vmm-api.md, metrics), if it can give them now.
    let metrics = match app.pods.get(&record.id) {
        Some(pod) => {
            let asked = tokio::time::timeout(METRICS_DEADLINE, pod.machine.metrics()).await;
            asked.ok().and_then(Result::ok).flatten()
        }
        None => None,
    };
    let machine = machine::of_record(record, &app.config.paths);
    json!({
        "handler": record.runs_on(),
        "handlerAsked": record.handler,
        "state": record.state,
        "shape": record.shape,
        "placement": record.placement,
        "vmmOverheadMib": app.config.vmm.overhead_mib,
        "pid": record.process().map(|process| process.pid),
        "phases": record.phases,
        "network": record.network,
        "resources": record.resources,
        "console": machine.console(),
        "vmmLog": machine.log(),
        "vmm": metrics,
        "exit": record.exit,
    })
}
