//! The document a VMM reads from its standard input (docs/vmm-api.md, "Configuration").

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One VM. Descriptor numbers are those in the VMM's process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // Named and explained in docs/vmm-api.md.
pub struct VmmConfig {
    pub id: String,
    pub jail: Option<Jail>,
    pub kvm_fd: i32,
    pub kernel_fd: i32,
    pub initramfs_fd: i32,
    pub cmdline: String,
    pub vcpus: u32,
    pub max_vcpus: u32,
    pub memory_mib: u64,
    pub max_memory_mib: u64,
    pub disks: Vec<Disk>,
    pub nets: Vec<Net>,
    pub vsock: Option<Vsock>,
    pub fs: Option<Fs>,
    pub console: Option<Console>,
    pub control: Option<ControlSocket>,
    pub restore_fds: Option<RestoreFds>,
    pub hold: bool,
}

/// What the VMM gives up before it runs a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Jail {
    pub uid: u32,
    pub gid: u32,
    pub root: PathBuf,
    pub cgroup_procs_fds: Vec<i32>,
    pub max_files: u64,
    pub log_fd: i32,
}

/// A disk it starts with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Disk {
    pub id: String,
    pub fd: i32,
    pub read_only: bool,
    pub queues: u32,
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Net {
    pub id: String,
    pub tap_fd: i32,
    pub vhost_fd: Option<i32>,
    pub mac: String,
    pub mtu: u32,
    pub queue_size: u32,
}

/// The vsock device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Vsock {
    pub cid: u64,
    pub path: PathBuf,
}

/// The directory the guest gets by virtio-fs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Fs {
    pub tag: String,
    pub share: PathBuf,
    pub max_inodes: u64,
    pub max_handles: u64,
}

/// The serial console's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Console {
    pub path: PathBuf,
    pub limit_bytes: u64,
}

/// The control socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct ControlSocket {
    pub path: PathBuf,
}

/// The files of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct RestoreFds {
    pub state: i32,
    pub memory: i32,
}
