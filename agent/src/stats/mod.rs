//! What containers and the guest use, from cgroup and proc files. Files that are not there (a
//! controller the guest kernel lacks) read as 0, as the kubelet's own reader has it.

pub mod text;
pub mod usage;

use std::fs;
use std::path::Path;

use bulkhead_proto::agent::{ContainerStats, GuestStats, InterfaceStats, Psi};

use crate::clock;

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn psi(path: impl AsRef<Path>) -> Option<Psi> {
    text::psi(&fs::read_to_string(path).ok()?)
}

/// A container's use. `written` is its writable layer, in bytes and inodes.
pub fn container(id: &str, cgroup: &Path, written: (u64, u64)) -> ContainerStats {
    let file = |name: &str| read(cgroup.join(name));
    let number = |name: &str| file(name).trim().parse().unwrap_or(0);
    let memory = file("memory.stat");
    let in_memory = |key| text::value(&memory, key).unwrap_or(0);
    let usage = number("memory.current");
    ContainerStats {
        container_id: id.to_owned(),
        time_unix_ns: clock::realtime_ns(),
        cpu_usage_ns: text::value(&file("cpu.stat"), "usage_usec").unwrap_or(0) * 1000,
        memory_usage_bytes: usage,
        memory_working_set_bytes: usage.saturating_sub(in_memory("inactive_file")),
        memory_rss_bytes: in_memory("anon"),
        page_faults: in_memory("pgfault"),
        major_page_faults: in_memory("pgmajfault"),
        // "max" is no limit.
        memory_limit_bytes: number("memory.max"),
        pids: number("pids.current"),
        writable_bytes: written.0,
        writable_inodes: written.1,
        cpu_psi: psi(cgroup.join("cpu.pressure")),
        memory_psi: psi(cgroup.join("memory.pressure")),
        io_psi: psi(cgroup.join("io.pressure")),
        swap_usage_bytes: number("memory.swap.current"),
        swap_limit_bytes: number("memory.swap.max"),
    }
}

/// The whole guest's use.
pub fn guest(cgroup_root: &Path) -> GuestStats {
    let memory = read("/proc/meminfo");
    let kilobytes = |key| text::value(&memory, key).unwrap_or(0) * 1024;
    GuestStats {
        time_unix_ns: clock::realtime_ns(),
        cpu_usage_ns: text::value(&read(cgroup_root.join("cpu.stat")), "usage_usec").unwrap_or(0)
            * 1000,
        memory_total_bytes: kilobytes("MemTotal:"),
        memory_available_bytes: kilobytes("MemAvailable:"),
        pids: text::process_count(&read("/proc/loadavg")),
        interfaces: text::interfaces(&read("/proc/net/dev"))
            .filter(|interface: &InterfaceStats| interface.name != "lo")
            .collect(),
    }
}
