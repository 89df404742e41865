//! A pod's virtual machine: its VMM, reached over the control socket in the VMM's directory.

use std::{
    collections::HashSet,
    fs::File,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bulkhead_contract::vmm::{AttachDisk, AttachNet, ErrorKind, Pin, Resize};
use bulkhead_images::LayerDisk;
use bulkhead_proto::agent::READY_PORT;

use super::{
    Control, JailDir, Kernel, Plan, VmmError,
    device::{NET_QUEUE_SIZE, fitting, hardware_address, vhost_net},
    make_jail, spawn,
};
use crate::{
    agent::{Address, Agent, ReadyListener},
    config::Vmm,
    machine::{Machine, MachineError, Start, Started, exit},
    network::Nic,
    records::{KVM_FULL, MachineKind, SandboxRecord, VmExit},
    sandbox::SCRATCH,
    task::{TaskError, blocking},
};

/// Whose end is read.
const WHO: &str = "the VMM process";

/// A virtual machine of a pod's own.
#[derive(Debug)]
pub struct VirtualMachine {
    control: Control,
    jail: JailDir,
    joins_layers: bool,
}

impl VirtualMachine {
    /// Of the pod with this run-time directory. `joins_layers`: its VMM and its agent know disks that
    /// are several layers.
    pub fn of_pod(pod_dir: &Path, joins_layers: bool) -> Self {
        let jail = JailDir::of_pod(pod_dir);
        Self {
            control: Control::new(jail.control()),
            jail,
            joins_layers,
        }
    }

    async fn plug(
        &self,
        serial: &str,
        read_only: bool,
        file: BorrowedFd<'_>,
    ) -> Result<(), VmmError> {
        let disk = AttachDisk {
            id: serial.to_owned(),
            read_only,
            queues: 1,
            parts: Vec::new(),
        };
        self.plug_disk(disk, &[file]).await
    }

    async fn plug_disk(&self, disk: AttachDisk, files: &[BorrowedFd<'_>]) -> Result<(), VmmError> {
        match self.control.attach(disk, files).await {
            Ok(_) => Ok(()),
            // Left by a daemon that died between plugging and writing so.
            Err(VmmError::Request {
                kind: ErrorKind::Exists,
                ..
            }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[tonic::async_trait]
impl Machine for VirtualMachine {
    fn kind(&self) -> MachineKind {
        MachineKind::Vm
    }

    fn agent(&self) -> Address {
        Address::Vsock(self.jail.vsock())
    }

    fn console(&self) -> PathBuf {
        self.jail.console()
    }

    fn log(&self) -> Option<PathBuf> {
        Some(self.jail.log())
    }

    fn vsock_port(&self, port: u32) -> Option<PathBuf> {
        Some(self.jail.vsock_port(port))
    }

    fn make_dir(&self, uid: u32) -> Result<(), MachineError> {
        make_jail(&self.jail, uid).map_err(|source| MachineError::Os {
            action: format!("make the directory {}", self.jail.root().display()),
            source,
        })
    }

    fn read_exit(&self, at: i64) -> VmExit {
        exit::read(WHO, &self.jail.exit(), &self.jail.console(), at)
    }

    fn owns_cgroup(&self) -> bool {
        true
    }

    async fn start(&self, start: Start<'_>) -> Result<Started, MachineError> {
        let Start {
            record, timeline, ..
        } = start;
        let kernel = kernel(&start.config.vmm, record)?;
        let prepare = start.network.prepare(&record.id);
        let nics = timeline.step("namespace and tap", prepare).await?;
        let queue = Arc::clone(start.boots).acquire_owned();
        let queue = timeline.step("queue", queue).await;
        let boot = queue.map_err(|_closed| TaskError::Ending)?;
        let has_tap = !nics.is_empty();
        let ready = ReadyListener::bind(&self.jail.vsock_port(READY_PORT), start.uid)?;
        let limits = record.shape.limits;
        let plan = Plan {
            id: record.id.clone(),
            uid: start.uid,
            jail: self.jail.clone(),
            cgroup_procs: start.cgroup_procs,
            kernel,
            vcpus: record.shape.vcpus,
            max_vcpus: limits.map_or(record.shape.vcpus, |l| l.max_vcpus),
            memory_mib: record.shape.memory_mib,
            max_memory_mib: limits.map_or(record.shape.memory_mib, |l| l.max_memory_mib),
            disks: vec![(SCRATCH.to_owned(), start.scratch, false)],
            nics,
            share: record.has_share(),
        };
        let spawn = spawn(&start.config.vmm, plan);
        let process = timeline.step("vmm process", spawn).await?;
        Ok(Started {
            process,
            has_tap,
            ready,
            boot: Some(boot),
            has_guest_clock: true,
        })
    }

    async fn stop(&self, _agent: &Agent, _limit: Duration) -> Result<(), MachineError> {
        // A guest is not asked to power off: its containers are dead, their output is in the logs,
        // what is the host's is written out and the disk that is its own goes with the pod.
        Ok(self.control.stop().await?)
    }

    fn joins_layers(&self) -> bool {
        self.joins_layers
    }

    async fn attach_joined(&self, serial: &str, parts: &[(File, u64)]) -> Result<(), MachineError> {
        let disk = AttachDisk {
            id: serial.to_owned(),
            read_only: true,
            queues: 1,
            parts: parts.iter().map(|(_, bytes)| *bytes).collect(),
        };
        let files: Vec<_> = parts.iter().map(|(file, _)| file.as_fd()).collect();
        Ok(self.plug_disk(disk, &files).await?)
    }

    async fn attach_layers(
        &self,
        _agent: &Agent,
        layers: &[&LayerDisk],
        attached: &mut HashSet<String>,
    ) -> Result<(), MachineError> {
        for layer in layers {
            let path = layer.path.clone();
            let file = blocking(move || {
                File::open(&path).map_err(|source| MachineError::Os {
                    action: format!("open the image layer {}", path.display()),
                    source,
                })
            });
            let file = file.await?;
            self.plug(&layer.serial, true, file.as_fd()).await?;
            attached.insert(layer.serial.clone());
        }
        Ok(())
    }

    async fn attach_device(
        &self,
        serial: &str,
        read_only: bool,
        file: BorrowedFd<'_>,
    ) -> Result<(), MachineError> {
        Ok(self.plug(serial, read_only, file).await?)
    }

    async fn attach_nic(&self, vmm: &Vmm, nic: Nic) -> Result<(), MachineError> {
        let mode = vmm.vhost_net;
        let (net, tap, vhost) = blocking(move || {
            let vhost = vhost_net(mode)?;
            let net = AttachNet {
                mac: hardware_address(&nic.mac)?,
                mtu: fitting("nets[].mtu", nic.mtu)?,
                queue_size: NET_QUEUE_SIZE,
                id: nic.id,
            };
            Ok::<_, MachineError>((net, nic.tap, vhost))
        })
        .await?;
        let mut files = vec![tap.as_fd()];
        files.extend(vhost.as_ref().map(AsFd::as_fd));
        self.control.attach_net(net, &files).await?;
        Ok(())
    }

    async fn detach(&self, serial: &str) -> Result<(), MachineError> {
        match self.control.detach(serial).await {
            Ok(())
            | Err(VmmError::Request {
                kind: ErrorKind::NotFound,
                ..
            }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn metrics(&self) -> Result<Option<serde_json::Value>, MachineError> {
        Ok(Some(self.control.metrics().await?))
    }

    async fn resize(&self, size: Resize) -> Result<u64, MachineError> {
        Ok(self.control.resize(size).await?)
    }

    async fn pin(&self, pin: Pin) -> Result<(), MachineError> {
        Ok(self.control.pin(pin).await?)
    }
}

/// The kernel that the pod's handler stands for.
fn kernel(vmm: &Vmm, record: &SandboxRecord) -> Result<Kernel, VmmError> {
    if record.runs_on() != KVM_FULL {
        return Ok(Kernel {
            path: vmm.kernel.clone(),
            hint: "install it or set vmm.kernel",
        });
    }
    let path = vmm.full_kernel.clone();
    let path = path.ok_or_else(|| VmmError::Configuration {
        key: "kernel_fd",
        what: "vmm.full_kernel of the daemon's configuration names no file".to_owned(),
    })?;
    Ok(Kernel {
        path,
        hint: "build it (make -C guest-kernel full) and set vmm.full_kernel",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Config, records::testing::sandbox};

    #[test]
    fn the_handler_decides_which_kernel_boots() {
        let vmm = |text: &str| Config::parse(Path::new("t"), text).unwrap().vmm;
        let of = |vmm: &Vmm, handler: &str| {
            let record = SandboxRecord {
                handler: handler.to_owned(),
                ..sandbox("1")
            };
            kernel(vmm, &record).map(|kernel| kernel.path)
        };
        let both = vmm("[vmm]\nkernel = \"/k\"\nfull_kernel = \"/full\"\n");
        for handler in ["", "kvm"] {
            assert_eq!(of(&both, handler).unwrap(), Path::new("/k"));
        }
        assert_eq!(of(&both, KVM_FULL).unwrap(), Path::new("/full"));
        // Never another kernel than the one that was asked for.
        of(&vmm(""), KVM_FULL).unwrap_err();
    }
}
