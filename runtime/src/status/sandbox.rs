//! A pod's record as CRI's messages. Pure.

use bulkhead_proto::cri as v1;

use crate::records::{MachineKind, SandboxRecord, SandboxState};

/// The state CRI shows.
pub(crate) fn sandbox_state(state: SandboxState) -> v1::PodSandboxState {
    match state {
        SandboxState::Ready => v1::PodSandboxState::SandboxReady,
        SandboxState::Creating | SandboxState::NotReady | SandboxState::Released => {
            v1::PodSandboxState::SandboxNotready
        }
    }
}

/// The handler a pod runs on: as asked for, but for one that the policy put on the host.
fn handler(record: &SandboxRecord) -> String {
    match (record.handler.as_str(), record.machine) {
        ("", MachineKind::Host) => MachineKind::Host.handler().to_owned(),
        (asked, _) => asked.to_owned(),
    }
}

/// An entry of ListPodSandbox.
pub(crate) fn list_sandbox(record: &SandboxRecord) -> v1::PodSandbox {
    v1::PodSandbox {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        state: sandbox_state(record.state).into(),
        created_at: record.created_at,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: handler(record),
    }
}

/// PodSandboxStatus.
pub(crate) fn describe_sandbox(record: &SandboxRecord) -> v1::PodSandboxStatus {
    let options = record
        .config
        .linux
        .as_ref()
        .and_then(|l| l.security_context.as_ref())
        .and_then(|s| s.namespace_options.clone())
        .unwrap_or_default();
    v1::PodSandboxStatus {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        state: sandbox_state(record.state).into(),
        created_at: record.created_at,
        network: Some(network(record)),
        linux: Some(v1::LinuxPodSandboxStatus {
            namespaces: Some(v1::Namespace {
                options: Some(options),
            }),
        }),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: handler(record),
    }
}

fn network(record: &SandboxRecord) -> v1::PodSandboxNetworkStatus {
    let mut addresses = record
        .network
        .iter()
        .flat_map(|n| n.addresses.iter().cloned());
    v1::PodSandboxNetworkStatus {
        ip: addresses.next().unwrap_or_default(),
        additional_ips: addresses.map(|ip| v1::PodIp { ip }).collect(),
    }
}
