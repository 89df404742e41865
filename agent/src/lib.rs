//! The agent: PID 1 of a pod's guest, or the process of a pod on the host. It brings up the guest,
//! reports to the daemon that it is ready, and then creates, runs and watches the pod's containers
//! as the daemon asks.
//!
//! | module | what lives there |
//! | --- | --- |
//! | [`init`] | what only PID 1 does: mounts, cgroup controllers, limits, power-off |
//! | [`host`] | the agent of a pod on the host: its way into the pod's cgroup and namespaces |
//! | [`launcher`] | the single-threaded process that forks containers and execs |
//! | [`container`] | a container's life: root file system, cgroup, spec, records |
//! | [`process`] | standard streams, exit statuses, reaping |
//! | [`volumes`] | what containers' mounts have as their source |
//! | [`memory`] | what all containers together may use, and how much the guest wants |
//! | [`net`], [`disk`], [`cpus`], [`user`], [`stats`] | devices and data of the guest |
//! | [`apparmor`], [`userns`] | what confines a container beyond its namespaces |
//! | [`serve`], [`gate`] | accepting connections: from the host alone, and so many at a time |
//! | [`rpc`] | the service, and the only place that knows gRPC codes |
//!
//! In a guest the agent knows no host: disks are named by serial, interfaces by MAC address.

pub mod apparmor;
pub mod async_fd;
pub mod blocking;
pub mod clock;
pub mod console;
pub mod container;
pub mod cpus;
pub mod disk;
pub mod gate;
pub mod host;
pub mod huge_pages;
pub mod init;
pub mod launcher;
pub mod memory;
pub mod mount_attr;
pub mod mutex;
pub mod names;
pub mod net;
pub mod null;
pub mod paths;
pub mod poll;
pub mod process;
pub mod report;
pub mod rpc;
pub mod serve;
pub mod stats;
pub mod user;
pub mod userns;
pub mod volumes;
