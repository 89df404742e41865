//! Lists with many records. No VM is asked for them and none is needed: this runs on the machine
//! itself, on the records of a pod that is stopped.

use std::{path::Path, sync::Arc};

use bulkhead_proto::cri::ListContainersRequest;
use bulkhead_runtime::records::{
    ContainerMeta, ContainerRecord, ContainerState, ContainerStatus, MachineKind, Records,
    SandboxRecord, SandboxState, Shape,
};
use tokio::time::Instant;

use super::figures::{Figures, milliseconds};
use crate::{
    Outcome, check, cri,
    host::{Host, Options, REGISTRY},
};

/// How many container records a list is measured with.
const RECORDS: usize = 500;
const LISTS: &str = "ListContainers, 500 records";
/// The pod of the records.
const POD: &str = "00000000000000000000000000000b0d";

/// Measures a daemon with its state below `results`.
///
/// # Errors
/// If anything of it does not work.
pub async fn measure(results: &Path, repeat: usize, figures: &mut Figures) -> Outcome {
    println!("==> lists with {RECORDS} records");
    let options = Options {
        state_dir: Some(results.join("lists-state")),
        ..Options::default()
    };
    let mut host = Host::start("lists", results, options).await?;
    host.stop_daemon().await?;
    fill(&host.state_dir().join("state.redb")).await?;
    host.start_daemon().await?;
    let cri = host.cri().await?;
    for _ in 0..repeat {
        let began = Instant::now();
        let request = ListContainersRequest { filter: None };
        let answer = cri.runtime.clone().list_containers(request).await?;
        figures.add(LISTS, "ms", milliseconds(began.elapsed()));
        let count = answer.into_inner().containers.len();
        check!(count == RECORDS, "{count} containers are listed");
    }
    if let Some(time) = figures.median(LISTS) {
        figures.hold("ListContainers with 500 records, ms", time, 5.0);
    }
    host.stop_daemon().await
}

/// The daemon does not run meanwhile; its own code writes the records.
async fn fill(database: &Path) -> Outcome {
    let records = Records::open(database)?;
    let config = cri::pod("lists");
    let sandbox = SandboxRecord {
        id: POD.to_owned(),
        config: config.clone(),
        handler: String::new(),
        machine: MachineKind::Vm,
        created_at: 1,
        state: SandboxState::Released,
        resources: Vec::new(),
        joins_layers: true,
        placement: None,
        placing: false,
        shape: Shape {
            vcpus: 1,
            memory_mib: 256,
            scratch_mib: 64,
            containers_memory: None,
            limits: None,
        },
        network: None,
        phases: Vec::new(),
        exit: None,
    };
    records.sandboxes.insert(sandbox).await?;
    let image = format!("{REGISTRY}/busybox:latest");
    let containers = (0..RECORDS).map(|number| {
        let name = format!("c{number}");
        let mut config = cri::script(&name, &image, "exec sleep 100000");
        // What a kubelet sets on every container.
        for key in ["container.name", "pod.name", "pod.namespace", "pod.uid"] {
            let key = format!("io.kubernetes.{key}");
            config.labels.insert(key.clone(), name.clone());
            config.annotations.insert(key, name.clone());
        }
        ContainerRecord {
            meta: Arc::new(ContainerMeta {
                id: format!("{number:032x}"),
                sandbox_id: POD.to_owned(),
                config,
                image_id: format!("sha256:{}", "0".repeat(64)),
                layers: Vec::new(),
                layer_places: Vec::new(),
                log_path: None,
                created_at: 1,
                stop_signal: 15,
                user: None,
                volumes: Vec::new(),
                extra: std::collections::BTreeMap::new(),
            }),
            status: ContainerStatus {
                state: ContainerState::Exited,
                started_at: 2,
                finished_at: 3,
                exit_code: 0,
                oom_killed: false,
                message: String::new(),
                resources: bulkhead_proto::cri::LinuxContainerResources::default(),
            },
        }
    });
    records
        .containers
        .batch(containers.collect(), Vec::new())
        .await?;
    Ok(())
}
