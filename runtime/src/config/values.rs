//! The configuration as the daemon has it: every value checked, every default filled in. How it comes
//! from the file is in `super::resolve`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use super::pinned::Pinned;
use crate::cgroup::CgroupDriver;

/// The configuration, validated.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where files are.
    pub paths: Paths,
    /// The virtual machines' programs and limits.
    pub vmm: Vmm,
    /// Defaults and limits for pods.
    pub sandbox: Sandbox,
    /// Pods on the host.
    pub host: Host,
    /// Starting virtual machines.
    pub boot: Boot,
    /// Pods' network.
    pub network: Network,
    /// Volumes of the host.
    pub volumes: Volumes,
    /// Control groups.
    pub cgroup: Cgroup,
    /// Exec, attach and port-forward.
    pub streaming: Streaming,
    /// Pulling images.
    pub registry: Registry,
    /// Images on the node.
    pub images: Images,
}

/// Where the daemon keeps its files. All absolute.
#[derive(Debug, Clone)]
pub struct Paths {
    /// Lasting state.
    pub state_dir: PathBuf,
    /// State until the next reboot.
    pub run_dir: PathBuf,
    /// The CRI socket.
    pub socket: PathBuf,
}

impl Paths {
    /// The records.
    pub fn database(&self) -> PathBuf {
        self.state_dir.join("state.redb")
    }

    /// The image store.
    pub fn images(&self) -> PathBuf {
        self.state_dir.join("images")
    }

    /// One read-only file per image layer.
    pub fn layers(&self) -> PathBuf {
        self.images().join("layers")
    }

    /// A pod's run-time directory.
    pub fn pod(&self, id: &str) -> PathBuf {
        self.run_dir.join("pods").join(id)
    }

    /// A pod's lasting directory: its writable disk.
    pub fn pod_state(&self, id: &str) -> PathBuf {
        self.state_dir.join("pods").join(id)
    }
}

/// The virtual machines' programs and limits.
#[derive(Debug, Clone)]
pub struct Vmm {
    /// The VMM's program.
    pub binary: PathBuf,
    /// The KVM device.
    pub kvm: PathBuf,
    /// The guest kernel.
    pub kernel: PathBuf,
    /// The one of the handler "kvm-full", which is there if this is.
    pub full_kernel: Option<PathBuf>,
    /// The agent's initramfs.
    pub initramfs: PathBuf,
    /// Added to the kernel's command line.
    pub cmdline: String,
    /// First user id for VMMs.
    pub uid_base: u32,
    /// How many.
    pub uid_count: u32,
    /// VMM memory beyond the guest's.
    pub overhead_mib: u64,
    /// Bound of the console log.
    pub console_limit_bytes: u64,
    /// Whether to use vhost-net.
    pub vhost_net: VhostNet,
}

/// Whether the kernel's vhost-net carries the pods' packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VhostNet {
    /// Where /dev/vhost-net opens.
    Auto,
    /// A pod without it fails.
    Always,
    /// The VMM's own back end.
    Never,
}

/// Defaults and limits for pods.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// vCPUs where no limit is given.
    pub vcpus: u32,
    /// The most vCPUs.
    pub max_vcpus: u32,
    /// Memory where no limit is given.
    pub memory_mib: u64,
    /// The most memory after a resize.
    pub max_memory_mib: u64,
    /// The least memory.
    pub min_memory_mib: u64,
    /// What a guest's kernel and agent take of its memory.
    pub guest_overhead_mib: u64,
    /// Bound of the writable disk.
    pub scratch_mib: u64,
    /// Whether VMMs have a file server.
    pub volumes: bool,
    /// Time for a VMM to end its VM.
    pub stop_timeout: Duration,
    /// Where pods go that need namespaces of the host.
    pub host_namespace_pods: HostNamespacePods,
}

/// What happens to a pod that asks for namespaces of the host and for no handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostNamespacePods {
    /// It runs on the host.
    Host,
    /// It is refused.
    Reject,
}

/// Pods on the host.
#[derive(Debug, Clone)]
pub struct Host {
    /// The agent's program.
    pub agent: PathBuf,
    /// io_uring for containers without a seccomp profile.
    pub allow_io_uring: bool,
}

/// Starting virtual machines.
#[derive(Debug, Clone)]
pub struct Boot {
    /// How many at a time.
    pub parallel: usize,
    /// Time for one.
    pub timeout: Duration,
}

/// Pods' network.
#[derive(Debug, Clone)]
pub struct Network {
    /// How.
    pub mode: NetworkMode,
    /// Where plugins are.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// Where their configuration is.
    pub cni_conf_dir: PathBuf,
    /// Where namespaces of pods are.
    pub netns_dir: PathBuf,
    /// Time for one plugin.
    pub cni_timeout: Duration,
}

/// How pods get a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkMode {
    /// By the CNI plugins.
    Cni,
    /// Not at all: loopback only.
    None,
}

/// Control groups.
#[derive(Debug, Clone)]
pub struct Cgroup {
    /// Who manages them, and so how `cgroup_parent` reads.
    pub driver: CgroupDriver,
    /// Where version 2 is mounted.
    pub root: PathBuf,
    /// Parent for pods without one.
    pub default_parent: String,
}

/// Volumes of the host in pods.
#[derive(Debug, Clone)]
pub struct Volumes {
    /// Sockets that pods may connect to.
    pub sockets: Vec<PathBuf>,
}

/// Images on the node.
#[derive(Debug, Clone)]
pub struct Images {
    /// Which the kubelet leaves alone.
    pub pinned: Pinned,
    /// Bytes of an image's layers, compressed.
    pub max_image_bytes: u64,
    /// Bytes of one layer, unpacked.
    pub max_layer_bytes: u64,
    /// Files and directories of one layer.
    pub max_layer_entries: u64,
    /// Bytes of memory for the names in one layer.
    pub max_layer_memory: u64,
    /// How long layers of unfinished pulls are kept.
    pub keep_unfinished: Duration,
}

/// Exec, attach and port-forward.
#[derive(Debug, Clone)]
pub struct Streaming {
    /// Where the server listens.
    pub address: SocketAddr,
    /// Its certificate, if it speaks TLS.
    pub tls: Option<TlsFiles>,
    /// Silence after which a connection is closed.
    pub idle_timeout: Duration,
    /// For the streams a client has asked for.
    pub creation_timeout: Duration,
}

/// PEM files.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The chain, the server's own first.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Pulling images.
#[derive(Debug, Clone)]
pub struct Registry {
    /// Per-registry settings.
    pub config_dir: PathBuf,
    /// Layers at a time.
    pub parallel_layers: usize,
    /// Time without progress.
    pub stall_timeout: Duration,
}
