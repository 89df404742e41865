//! A pod's record: what was asked for, what it holds on this host, how far it is.

use std::path::{Path, PathBuf};

use bulkhead_contract::exit::Reason;
use bulkhead_proto::cri::PodSandboxConfig;
use bulkhead_records::Record;
use serde::{Deserialize, Serialize};

/// The handler of pods in a VM with the full guest kernel.
pub const KVM_FULL: &str = "kvm-full";

/// A pod sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// 32 lower-case hexadecimal digits.
    pub id: String,
    /// As CRI sent it.
    #[serde(with = "super::proto")]
    pub config: PodSandboxConfig,
    /// The RuntimeClass handler as asked for: "", "kvm", "kvm-full" or "host".
    pub handler: String,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// How far it is.
    pub state: SandboxState,
    /// What it holds on the host, in the order made; released in reverse. Each is written here
    /// before it is made, so that nothing is made that no record owns.
    pub resources: Vec<Resource>,
    /// What it runs in.
    #[serde(default)]
    pub machine: MachineKind,
    /// Whether the layers it gets together are parts of one disk. What runs in pods of an older
    /// daemon knows only disks that are one layer.
    #[serde(default)]
    pub joins_layers: bool,
    /// Size of its virtual machine; on the host only that of its writable disk.
    pub shape: Shape,
    /// The node's processors and memory that it is held to; `None` for all that its cgroups allow.
    #[serde(default)]
    pub placement: Option<Placement>,
    /// Whether its first placement was begun and has not ended: it may be in force, wholly or in part.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub placing: bool,
    /// Once the network is set up.
    pub network: Option<NetworkRecord>,
    /// How long each step of the start took.
    pub phases: Vec<Phase>,
    /// How the VM ended, once it has.
    pub exit: Option<VmExit>,
}

impl SandboxRecord {
    /// The handler it runs on, which is not the one asked for where a policy chose.
    pub fn runs_on(&self) -> &str {
        match self.machine {
            MachineKind::Vm if self.handler == KVM_FULL => KVM_FULL,
            machine => machine.handler(),
        }
    }

    /// The user its VMM runs as.
    pub fn uid(&self) -> Option<u32> {
        self.resources.iter().find_map(|resource| match resource {
            Resource::Uid { uid } => Some(*uid),
            _ => None,
        })
    }

    /// The file of its network namespace, while it has a network.
    pub fn netns(&self) -> Option<&Path> {
        self.resources.iter().find_map(|resource| match resource {
            Resource::Network { netns } => Some(netns.as_path()),
            _ => None,
        })
    }

    /// The cgroup that its process is in.
    pub fn cgroup(&self) -> Option<&Path> {
        self.resources.iter().find_map(|resource| match resource {
            Resource::Cgroup { path } => Some(path.as_path()),
            _ => None,
        })
    }

    /// Whether a process of its own may run, or has not been seen to end.
    pub fn has_process(&self) -> bool {
        let process = |resource: &Resource| matches!(resource, Resource::Vmm { .. });
        self.resources.iter().any(process)
    }

    /// Its VMM, or its agent on the host, once that is known.
    pub fn process(&self) -> Option<VmmProcess> {
        self.resources.iter().find_map(|resource| match resource {
            Resource::Vmm { process } => *process,
            _ => None,
        })
    }

    /// Whether it was made with a directory for the host's volumes.
    pub fn has_share(&self) -> bool {
        let share = |resource: &Resource| matches!(resource, Resource::Share { .. });
        self.resources.iter().any(share)
    }
}

impl Record for SandboxRecord {
    const TABLE: &'static str = "sandboxes";

    fn key(&self) -> &str {
        &self.id
    }
}

/// The life of a sandbox. CRI knows only READY and NOTREADY.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxState {
    /// RunPodSandbox is at work; not shown in lists.
    Creating,
    /// The guest runs and obeys.
    Ready,
    /// Stopped, or its VM has ended. What it held may still wait for release (StopPodSandbox).
    NotReady,
    /// Stopped and everything but the record released.
    Released,
}

/// What a pod runs in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MachineKind {
    /// A virtual machine: the handlers "kvm" and "kvm-full".
    #[default]
    Vm,
    /// The host: the handler "host".
    Host,
}

impl MachineKind {
    /// The RuntimeClass handler that stands for it; of a VM the ordinary one.
    pub fn handler(self) -> &'static str {
        match self {
            Self::Vm => "kvm",
            Self::Host => "host",
        }
    }
}

/// Size of a virtual machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Guest memory.
    pub memory_mib: u64,
    /// Size limit of the writable disk.
    pub scratch_mib: u64,
    /// Bytes that all containers may use together; `None` where the pod has no limit.
    #[serde(default)]
    pub containers_memory: Option<u64>,
    /// Between what the size can be changed; `None` where it cannot (pods of an older daemon).
    #[serde(default)]
    pub limits: Option<SizeLimits>,
}

/// What a virtual machine was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SizeLimits {
    /// The memory it booted with: less it cannot have.
    pub boot_memory_mib: u64,
    /// The most memory.
    pub max_memory_mib: u64,
    /// The most virtual CPUs.
    pub max_vcpus: u32,
    /// Whether it gets memory when its containers need it, as far as the node has it.
    #[serde(default)]
    pub elastic: bool,
    /// Whether it is charged to a cgroup beside the pod's, because the pod's limit is for the
    /// containers alone.
    #[serde(default)]
    pub beside: bool,
}

/// Where on the node a VM runs. Lists are written as the kernel writes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Processors of the VMM, all of its threads; empty for all that the cgroups above allow.
    pub cpus: String,
    /// Memory nodes, likewise.
    pub mems: String,
    /// The processors of each vCPU, from the first on.
    pub vcpus: Vec<String>,
}

/// One thing a pod holds on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Resource {
    /// A user id from the VMM range, the pod's own.
    Uid {
        /// The id.
        uid: u32,
    },
    /// A directory with all that is in it.
    Directory {
        /// Where.
        path: PathBuf,
    },
    /// The mounts of the host's volumes, below the pod's run-time directory.
    Share {
        /// That directory.
        pod: PathBuf,
    },
    /// A cgroup (v2), as a directory below /sys/fs/cgroup.
    Cgroup {
        /// Where.
        path: PathBuf,
    },
    /// The pod's network: a named namespace, in it a tap, and what CNI added.
    Network {
        /// The namespace's file.
        netns: PathBuf,
    },
    /// The pod's process: its VMM, or its agent on the host.
    Vmm {
        /// What identifies it; `None` until it runs (its cgroup and directory own it meanwhile).
        process: Option<VmmProcess>,
    },
}

/// A process that cannot be mistaken for a later one with the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmmProcess {
    /// Process id.
    pub pid: i32,
    /// Start time in clock ticks since boot (/proc/PID/stat, field 22).
    pub start_time: u64,
    /// Of which boot (/proc/sys/kernel/random/boot_id).
    pub boot: [u8; 16],
}

/// The pod's network as it was set up: for the status, and to give it to the guest again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// The pod's addresses without prefix, the primary first.
    pub addresses: Vec<String>,
    /// Interfaces in the guest.
    pub interfaces: Vec<InterfaceRecord>,
}

/// One interface of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceRecord {
    /// Its name in the guest.
    pub name: String,
    /// Its hardware address.
    pub mac: String,
    /// Its MTU.
    pub mtu: u32,
    /// Addresses with prefix.
    pub addresses: Vec<String>,
}

/// A step of a pod's start and how long it took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// What was done.
    pub name: String,
    /// Milliseconds since RunPodSandbox began.
    pub started_ms: f64,
    /// Milliseconds it took.
    pub took_ms: f64,
}

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmExit {
    /// As its process wrote it; `Killed` if it wrote nothing.
    pub reason: Reason,
    /// The VMM's words.
    pub message: String,
    /// The end of the guest's console.
    pub console_tail: String,
    /// Nanoseconds since the epoch.
    pub at: i64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::testing;

    #[test]
    fn ends_recorded_by_earlier_releases_are_read() {
        for (word, reason) in [
            ("killed", Reason::Killed),
            ("power_off", Reason::PowerOff),
            ("something of a later release", Reason::Unknown),
        ] {
            let mut record = serde_json::to_value(testing::sandbox("a")).unwrap();
            record["exit"] = serde_json::json!({
                "reason": word, "message": "m", "console_tail": "t", "at": 5
            });
            let read: SandboxRecord = serde_json::from_value(record).unwrap();
            assert_eq!(read.exit.unwrap().reason, reason);
        }
    }
}
