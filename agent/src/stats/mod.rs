//! What containers and the guest use, from cgroup and proc files: `cgroup_stats` has one container's
//! figures, `processes` what its processes hold, `usage` its writable layer, `text` the formats.

pub mod cgroup_stats;
pub mod processes;
pub mod read;
pub mod text;
pub mod usage;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use bulkhead_proto::agent::{Filesystem, GuestStats, InterfaceStats};

use self::read::{psi, read};
use crate::clock;
use crate::host::{Network, Pod};

/// The file system a path is on.
pub fn filesystem(path: &Path) -> Option<Filesystem> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(Filesystem {
        total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        available_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        inodes: stat.f_files,
        inodes_free: stat.f_ffree,
        device: fs::metadata(path)
            .map(|meta| (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev())))
            .map(|(major, minor)| device_name(major, minor))
            .unwrap_or_default(),
    })
}

/// What the kernel calls a block device; empty when there is none of these numbers.
pub fn device_name(major: u32, minor: u32) -> String {
    let link = fs::read_link(format!("/sys/dev/block/{major}:{minor}")).unwrap_or_default();
    let name = link.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// A whole pod's use on the host: of memory, what is not available is what it works with.
pub fn on_host(pod: &Pod) -> GuestStats {
    let whole = cgroup_stats::container("", &pod.cgroup, (0, 0));
    let host = guest(&pod.cgroup_root);
    GuestStats {
        cpu_usage_ns: whole.cpu_usage_ns,
        memory_available_bytes: host
            .memory_total_bytes
            .saturating_sub(whole.memory_working_set_bytes),
        cpu_psi: whole.cpu_psi,
        memory_psi: whole.memory_psi,
        io_psi: whole.io_psi,
        // In the host's network they are the host's.
        interfaces: match pod.network {
            Network::Node => Vec::new(),
            Network::Own | Network::At(_) => host.interfaces,
        },
        ..host
    }
}

/// How many processors the kernel uses.
pub fn online_cpus() -> u32 {
    text::list_count(&read("/sys/devices/system/cpu/online"))
}

/// The whole guest's use.
pub fn guest(cgroup_root: &Path) -> GuestStats {
    let memory = read("/proc/meminfo");
    let kilobytes = |key| text::value(&memory, key).unwrap_or(0) * 1024;
    GuestStats {
        time_unix_ns: clock::realtime_ns(),
        cpu_usage_ns: text::value(&read(cgroup_root.join("cpu.stat")), "usage_usec")
            .unwrap_or(0)
            .saturating_mul(text::NS_PER_US),
        memory_total_bytes: kilobytes("MemTotal:"),
        memory_available_bytes: kilobytes("MemAvailable:"),
        interfaces: text::interfaces(&read("/proc/net/dev"))
            .filter(|interface: &InterfaceStats| interface.name != "lo")
            .collect(),
        cpu_psi: psi("/proc/pressure/cpu"),
        memory_psi: psi("/proc/pressure/memory"),
        io_psi: psi("/proc/pressure/io"),
        online_cpus: online_cpus(),
    }
}
