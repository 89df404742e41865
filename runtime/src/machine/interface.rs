//! What every pod's machine can do.

use std::{
    collections::HashSet,
    fmt::Debug,
    fs::File,
    os::fd::{BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bulkhead_contract::vmm::{Pin, Resize};
use bulkhead_images::LayerDisk;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{MachineError, Process};
use crate::{
    agent::{Address, Agent, ReadyListener},
    config::{Config, Vmm},
    network::{Nic, PodNetwork},
    records::{MachineKind, SandboxRecord, VmExit},
    sandbox::Timeline,
};

/// What one pod runs in. It holds nothing but names: what runs is the pod's process.
#[tonic::async_trait]
pub trait Machine: Debug + Send + Sync {
    /// Which it is, as the records have it.
    fn kind(&self) -> MachineKind;

    /// Where its agent serves.
    fn agent(&self) -> Address;

    /// What the guest's kernel and agent say: its console; on the host the agent's log.
    fn console(&self) -> PathBuf;

    /// The log of what runs it, if that is another file.
    fn log(&self) -> Option<PathBuf>;

    /// Where connections from the guest to a vsock port of the host arrive; `None` without a guest.
    fn vsock_port(&self, port: u32) -> Option<PathBuf>;

    /// Makes the machine's directory in the pod's, for the pod's user id. Blocks.
    ///
    /// # Errors
    /// If it is there, or cannot be made.
    fn make_dir(&self, uid: u32) -> Result<(), MachineError>;

    /// How it ended. Blocks. `at` is nanoseconds since the epoch.
    fn read_exit(&self, at: i64) -> VmExit;

    /// Whether its containers are gone with its process, and the pod's cgroup holds nothing else.
    fn owns_cgroup(&self) -> bool;

    /// Starts it, and what of its network must be there first.
    ///
    /// # Errors
    /// When this fails what was begun is owned by the pod's record.
    async fn start(&self, start: Start<'_>) -> Result<Started, MachineError>;

    /// Asks its process to end within `limit`; the caller waits for that, and kills.
    ///
    /// # Errors
    /// If it does not hear.
    async fn stop(&self, agent: &Agent, limit: Duration) -> Result<(), MachineError>;

    /// Whether layers come to it as parts of disks, by [`attach_joined`](Self::attach_joined), and
    /// not by [`attach_layers`](Self::attach_layers).
    fn joins_layers(&self) -> bool;

    /// Gives it files one after the other as one read-only disk; with each, how many bytes of the disk
    /// it is. One that it has already is fine.
    ///
    /// # Errors
    /// If it does not take it; always without a guest.
    async fn attach_joined(&self, serial: &str, parts: &[(File, u64)]) -> Result<(), MachineError>;

    /// Gives it layers that it does not have, each added to `attached` as it is there.
    ///
    /// # Errors
    /// At the first that fails; those before it are there.
    async fn attach_layers(
        &self,
        agent: &Agent,
        layers: &[&LayerDisk],
        attached: &mut HashSet<String>,
    ) -> Result<(), MachineError>;

    /// Gives it a block device of the host's; one that it has already is fine.
    ///
    /// # Errors
    /// If it does not take it; always without a guest.
    async fn attach_device(
        &self,
        serial: &str,
        read_only: bool,
        file: BorrowedFd<'_>,
    ) -> Result<(), MachineError>;

    /// Gives it a further network device, while it runs.
    ///
    /// # Errors
    /// If it does not take it; always without a guest.
    async fn attach_nic(&self, vmm: &Vmm, nic: Nic) -> Result<(), MachineError>;

    /// Takes a disk away that its agent has let go; one that is not there is fine.
    ///
    /// # Errors
    /// If the VMM does not answer, or the guest does not give it up.
    async fn detach(&self, serial: &str) -> Result<(), MachineError>;

    /// The VMM's own figures (docs/vmm-api.md, metrics); `None` without one.
    ///
    /// # Errors
    /// If the VMM does not answer.
    async fn metrics(&self) -> Result<Option<serde_json::Value>, MachineError>;

    /// Changes its size; gives the memory it has, in MiB.
    ///
    /// # Errors
    /// If the VMM refuses or does not answer; always without one.
    async fn resize(&self, size: Resize) -> Result<u64, MachineError>;

    /// Says which of the host's processors its vCPUs run on.
    ///
    /// # Errors
    /// If the VMM refuses or does not answer; always without one.
    async fn pin(&self, pin: Pin) -> Result<(), MachineError>;
}

/// What a machine is started with.
#[derive(Debug)]
pub struct Start<'a> {
    /// The daemon's configuration.
    pub config: &'a Config,
    /// How pods get their network.
    pub network: &'a PodNetwork,
    /// Boots at one time.
    pub boots: &'a Arc<Semaphore>,
    /// Where the steps are noted.
    pub timeline: &'a Timeline,
    /// The pod.
    pub record: &'a SandboxRecord,
    /// Its user id.
    pub uid: u32,
    /// Its cgroup, a directory.
    pub cgroup: &'a Path,
    /// That cgroup's cgroup.procs, open for writing.
    pub cgroup_procs: OwnedFd,
    /// Its writable disk.
    pub scratch: File,
    /// It has the node's network.
    pub node_network: bool,
    /// It has the node's IPC.
    pub node_ipc: bool,
}

/// A machine that was started; its agent reports when it is ready.
#[derive(Debug)]
pub struct Started {
    /// The process whose end is the pod's.
    pub process: Process,
    /// It has the tap of its network's first interface.
    pub has_tap: bool,
    /// Where its agent reports.
    pub ready: ReadyListener,
    /// The permit to boot, to be given back when it has; `None` if nothing boots.
    pub boot: Option<OwnedSemaphorePermit>,
    /// Whether times the agent reports count from the start of a guest's kernel.
    pub has_guest_clock: bool,
}
