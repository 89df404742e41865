//! The node as a pod's machine: the pod's agent, one process in the pod's cgroup and namespaces.

use std::{
    collections::HashSet,
    fs::File,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use bulkhead_contract::{
    host::{Network, Pod},
    vmm::{Pin, Resize},
};
use bulkhead_images::LayerDisk;
use bulkhead_proto::agent::{LayerFile, MountLayersRequest, PowerOffRequest};

use super::{HostDir, make_dir, spawn};
use crate::{
    agent::{Address, Agent, ReadyListener},
    config::Vmm,
    machine::{Machine, MachineError, Start, Started, exit},
    network::Nic,
    records::{MachineKind, VmExit},
};

/// Whose end is read.
const WHO: &str = "the pod's agent";
/// Who may report that it is ready.
const ROOT: u32 = 0;
/// For the agent to mount an image's layers.
const MOUNT_DEADLINE: Duration = Duration::from_secs(30);

/// The host, in namespaces and a cgroup of the pod's own as far as it did not ask for the host's.
#[derive(Debug)]
pub struct HostMachine {
    id: String,
    dir: HostDir,
}

impl HostMachine {
    /// Of the pod with this id and run-time directory.
    pub fn of_pod(id: &str, pod_dir: &Path) -> Self {
        Self {
            id: id.to_owned(),
            dir: HostDir::of_pod(pod_dir),
        }
    }

    /// What the agent is told before it serves.
    fn pod(&self, start: &Start<'_>) -> Pod {
        Pod {
            id: self.id.clone(),
            directory: self.dir.root().to_owned(),
            socket: self.dir.socket(),
            ready: self.dir.ready(),
            exit: self.dir.exit(),
            cgroup_root: start.config.cgroup.root.clone(),
            cgroup: start.cgroup.to_owned(),
            network: match start.network.netns(&self.id) {
                _ if start.node_network => Network::Node,
                Some(path) => Network::At(path),
                None => Network::Own,
            },
            own_ipc: !start.node_ipc,
        }
    }

    fn no_vm(&self) -> MachineError {
        MachineError::NoVm {
            id: self.id.clone(),
        }
    }
}

#[tonic::async_trait]
impl Machine for HostMachine {
    fn kind(&self) -> MachineKind {
        MachineKind::Host
    }

    fn agent(&self) -> Address {
        Address::Unix(self.dir.socket())
    }

    fn console(&self) -> PathBuf {
        self.dir.log()
    }

    fn log(&self) -> Option<PathBuf> {
        None
    }

    fn vsock_port(&self, _port: u32) -> Option<PathBuf> {
        None
    }

    fn make_dir(&self, _uid: u32) -> Result<(), MachineError> {
        make_dir(&self.dir).map_err(|source| MachineError::Os {
            action: format!("make the directory {}", self.dir.root().display()),
            source,
        })
    }

    fn read_exit(&self, at: i64) -> VmExit {
        exit::read(WHO, &self.dir.exit(), &self.dir.log(), at)
    }

    fn owns_cgroup(&self) -> bool {
        false
    }

    async fn start(&self, start: Start<'_>) -> Result<Started, MachineError> {
        if !start.node_network {
            let prepare = start.network.prepare_namespace(&self.id);
            start.timeline.step("namespace", prepare).await?;
        }
        let ready = ReadyListener::bind(&self.dir.ready(), ROOT)?;
        let pod = self.pod(&start);
        let spawn = spawn(&start.config.host.agent, &self.dir, &pod);
        let process = start.timeline.step("agent process", spawn).await?;
        Ok(Started {
            process,
            has_tap: false,
            ready,
            // No kernel boots, and what others wait for may be the CNI plugins' own pod.
            boot: None,
            has_guest_clock: false,
        })
    }

    async fn stop(&self, agent: &Agent, limit: Duration) -> Result<(), MachineError> {
        let end = agent.call("end", limit, |mut agent| async move {
            agent.power_off(PowerOffRequest {}).await
        });
        end.await?;
        Ok(())
    }

    fn joins_layers(&self) -> bool {
        false
    }

    async fn attach_joined(&self, _serial: &str, _: &[(File, u64)]) -> Result<(), MachineError> {
        Err(self.no_vm())
    }

    async fn attach_layers(
        &self,
        agent: &Agent,
        layers: &[&LayerDisk],
        attached: &mut HashSet<String>,
    ) -> Result<(), MachineError> {
        if layers.is_empty() {
            return Ok(());
        }
        // The agent mounts the files themselves.
        let request = MountLayersRequest {
            layers: layers.iter().map(|layer| layer_file(layer)).collect(),
        };
        let mount = agent.call(
            "mount the image's layers",
            MOUNT_DEADLINE,
            |mut agent| async move { agent.mount_layers(request).await },
        );
        mount.await?;
        attached.extend(layers.iter().map(|layer| layer.serial.clone()));
        Ok(())
    }

    async fn attach_device(
        &self,
        _serial: &str,
        _read_only: bool,
        _file: BorrowedFd<'_>,
    ) -> Result<(), MachineError> {
        Err(self.no_vm())
    }

    async fn attach_nic(&self, _vmm: &Vmm, _nic: Nic) -> Result<(), MachineError> {
        Err(self.no_vm())
    }

    async fn detach(&self, _serial: &str) -> Result<(), MachineError> {
        // The agent has unmounted it, and there was nothing else.
        Ok(())
    }

    async fn metrics(&self) -> Result<Option<serde_json::Value>, MachineError> {
        Ok(None)
    }

    async fn resize(&self, _size: Resize) -> Result<u64, MachineError> {
        Err(self.no_vm())
    }

    async fn pin(&self, _pin: Pin) -> Result<(), MachineError> {
        Err(self.no_vm())
    }
}

fn layer_file(layer: &LayerDisk) -> LayerFile {
    LayerFile {
        serial: layer.serial.clone(),
        // Below the state directory, whose path is text from the configuration.
        file: layer.path.to_string_lossy().into_owned(),
    }
}
