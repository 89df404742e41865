//! Records for tests: the least that is one. A test says what is different about its own.

use std::sync::Arc;

use super::{
    ContainerMeta, ContainerRecord, ContainerState, ContainerStatus, MachineKind, SandboxRecord,
    SandboxState, Shape,
};

/// A pod that is ready.
pub(crate) fn sandbox(id: &str) -> SandboxRecord {
    SandboxRecord {
        id: id.to_owned(),
        config: Default::default(),
        handler: String::new(),
        machine: MachineKind::Vm,
        joins_layers: true,
        created_at: 1,
        state: SandboxState::Ready,
        resources: Vec::new(),
        shape: Shape {
            vcpus: 1,
            memory_mib: 128,
            scratch_mib: 64,
            containers_memory: None,
            limits: None,
        },
        network: None,
        placement: None,
        placing: false,
        phases: Vec::new(),
        exit: None,
    }
}

/// A container of it that runs.
pub(crate) fn container(id: &str, sandbox_id: &str) -> ContainerRecord {
    ContainerRecord {
        meta: Arc::new(ContainerMeta {
            id: id.to_owned(),
            sandbox_id: sandbox_id.to_owned(),
            config: Default::default(),
            image_id: String::new(),
            layers: Vec::new(),
            layer_places: Vec::new(),
            log_path: None,
            created_at: 1,
            stop_signal: 15,
            user: None,
            volumes: Vec::new(),
            extra: Default::default(),
        }),
        status: ContainerStatus {
            state: ContainerState::Running,
            started_at: 1,
            finished_at: 0,
            exit_code: 0,
            oom_killed: false,
            message: String::new(),
            resources: Default::default(),
        },
    }
}
