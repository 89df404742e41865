//! The table of metrics: name, description, labels, and where the value comes from. The names that
//! begin with `container_` are cAdvisor's, which the kubelet serves on; those that begin with
//! `bulkhead_` are what a VM costs, for which there is no other name. Pure.
//!
//! CRI carries whole numbers: seconds are rounded down. What is not known has no value, not zero.

use bulkhead_proto::{
    agent::{self, InterfaceStats, Psi, PsiLine},
    cri::MetricType::{self, Counter, Gauge},
};

use super::collect::{OneContainer, Sample};

/// Labels of every metric, before its own.
pub(super) const BASE_LABELS: &[&str] = &["id", "name", "image", "container", "namespace", "pod"];

const NS: u64 = 1_000_000_000;
const US: u64 = 1_000_000;
/// What a container without `cpu_shares` has: the kernel's default weight.
const DEFAULT_SHARES: u64 = 1024;

/// One metric of `S`, a pod or a container.
#[derive(Debug)]
pub(super) struct Family<S: ?Sized> {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    /// Beyond [`BASE_LABELS`].
    pub(super) labels: &'static [&'static str],
    pub(super) kind: MetricType,
    pub(super) values: fn(&S) -> Vec<Value>,
}

/// One value with its own labels.
#[derive(Debug)]
pub(super) struct Value {
    pub(super) labels: Vec<String>,
    pub(super) value: u64,
}

fn just(value: u64) -> Vec<Value> {
    maybe(Some(value))
}

fn maybe(value: Option<u64>) -> Vec<Value> {
    let labels = Vec::new();
    value
        .map(|value| Value { labels, value })
        .into_iter()
        .collect()
}

fn labelled(label: &str, value: u64) -> Value {
    Value {
        labels: vec![label.to_owned()],
        value,
    }
}

fn whole_seconds(ns: i64) -> Option<u64> {
    u64::try_from(ns)
        .ok()
        .filter(|ns| *ns > 0)
        .map(|ns| ns / NS)
}

/// Expands to one entry of a table; the last part is the function's body.
macro_rules! family {
    ($kind:ident $name:literal [$($label:literal),*] $help:literal, |$sample:ident| $values:expr) => {
        Family {
            name: $name,
            help: $help,
            labels: &[$($label),*],
            kind: $kind,
            values: |$sample| $values,
        }
    };
}

fn interfaces(sample: &Sample, value: fn(&InterfaceStats) -> u64) -> Vec<Value> {
    let all = sample.guest.interfaces.iter();
    all.map(|interface| labelled(&interface.name, value(interface)))
        .collect()
}

/// A pod's.
pub(super) const POD: &[Family<Sample>] = &[
    family!(Counter "container_network_receive_bytes_total" ["interface"]
        "Bytes received.", |s| interfaces(s, |i| i.rx_bytes)),
    family!(Counter "container_network_receive_errors_total" ["interface"]
        "Errors while receiving.", |s| interfaces(s, |i| i.rx_errors)),
    family!(Counter "container_network_receive_packets_dropped_total" ["interface"]
        "Packets dropped while receiving.", |s| interfaces(s, |i| i.rx_dropped)),
    family!(Counter "container_network_receive_packets_total" ["interface"]
        "Packets received.", |s| interfaces(s, |i| i.rx_packets)),
    family!(Counter "container_network_transmit_bytes_total" ["interface"]
        "Bytes sent.", |s| interfaces(s, |i| i.tx_bytes)),
    family!(Counter "container_network_transmit_errors_total" ["interface"]
        "Errors while sending.", |s| interfaces(s, |i| i.tx_errors)),
    family!(Counter "container_network_transmit_packets_dropped_total" ["interface"]
        "Packets dropped while sending.", |s| interfaces(s, |i| i.tx_dropped)),
    family!(Counter "container_network_transmit_packets_total" ["interface"]
        "Packets sent.", |s| interfaces(s, |i| i.tx_packets)),
    family!(Counter "bulkhead_pod_cpu_usage_seconds_total" []
        "CPU time of the pod's cgroup on the host: the virtual machine with its VMM.",
        |s| maybe(s.host.cpu_ns.map(|ns| ns / NS))),
    family!(Gauge "bulkhead_pod_memory_usage_bytes" []
        "Memory charged to the pod's cgroup on the host: the virtual machine with its VMM.",
        |s| maybe(s.host.memory.map(|memory| memory.usage))),
    family!(Gauge "bulkhead_pod_memory_beside_bytes" []
        "What the virtual machine may take beyond the pod's memory limit, in a cgroup beside the pod's.",
        |s| just(s.beside)),
    family!(Gauge "bulkhead_pod_vmm_memory_bytes" []
        "Resident memory of the VMM process beyond the guest's memory: what the virtual machine costs.",
        |s| maybe(s.vmm.map(|vmm| vmm.own))),
    family!(Gauge "bulkhead_pod_guest_memory_resident_bytes" []
        "How much of the guest's memory is taken from the host.",
        |s| maybe(s.vmm.map(|vmm| vmm.guest_resident))),
    family!(Gauge "bulkhead_pod_guest_memory_bytes" []
        "Size of the guest's memory.", |s| maybe(s.vmm.map(|vmm| vmm.guest_size))),
    family!(Gauge "bulkhead_pod_guest_memory_available_bytes" []
        "Memory available for new processes, as the guest's kernel estimates it.",
        |s| just(s.guest.memory_available_bytes)),
    family!(Counter "bulkhead_pod_guest_cpu_usage_seconds_total" []
        "CPU time the guest's kernel has counted for all its processes.",
        |s| just(s.guest.cpu_usage_ns / NS)),
    family!(Gauge "bulkhead_pod_guest_cpus" []
        "Virtual CPUs that are online.", |s| just(s.guest.online_cpus.into())),
];

/// One line of a device's use per device and direction.
fn by_device(of: &OneContainer, value: fn(&agent::DeviceIo) -> u64) -> Vec<Value> {
    let all = of.stats.io.iter();
    all.map(|io| labelled(&io.device, value(io))).collect()
}

fn block_io(of: &OneContainer) -> Vec<Value> {
    let line = |io: &agent::DeviceIo, operation: &str, value| Value {
        labels: vec![
            io.device.clone(),
            io.major.to_string(),
            io.minor.to_string(),
            operation.to_owned(),
        ],
        value,
    };
    let all = of.stats.io.iter();
    all.flat_map(|io| {
        [
            line(io, "Read", io.read_bytes),
            line(io, "Write", io.write_bytes),
        ]
    })
    .collect()
}

/// The file system of the writable layer.
fn filesystem(of: &OneContainer, value: fn(&agent::Filesystem) -> u64) -> Vec<Value> {
    let one = of.stats.filesystem.as_ref();
    one.map(|fs| labelled(&fs.device, value(fs)))
        .into_iter()
        .collect()
}

fn failures(of: &OneContainer) -> Vec<Value> {
    // Counted for the container's cgroup with all below it.
    let line = |kind: &str, value| Value {
        labels: vec![kind.to_owned(), "hierarchy".to_owned()],
        value,
    };
    vec![
        line("pgfault", of.stats.page_faults),
        line("pgmajfault", of.stats.major_page_faults),
    ]
}

fn descriptors(of: &OneContainer, value: fn(&agent::Descriptors) -> u64) -> Vec<Value> {
    maybe(of.stats.descriptors.as_ref().map(value))
}

fn pressure(psi: Option<&Psi>, line: fn(&Psi) -> Option<&PsiLine>) -> Vec<Value> {
    maybe(psi.and_then(line).map(|line| line.total_us / US))
}

fn some(psi: &Psi) -> Option<&PsiLine> {
    psi.some.as_ref()
}

fn full(psi: &Psi) -> Option<&PsiLine> {
    psi.full.as_ref()
}

fn shares(of: &OneContainer) -> u64 {
    match of.record.status.resources.cpu_shares {
        0 => DEFAULT_SHARES,
        shares => u64::try_from(shares).unwrap_or(DEFAULT_SHARES),
    }
}

/// A container's.
pub(super) const CONTAINER: &[Family<OneContainer>] = &[
    family!(Counter "container_blkio_device_usage_total" ["device", "major", "minor", "operation"]
        "Bytes read and written on block devices.", |c| block_io(c)),
    family!(Counter "container_cpu_cfs_periods_total" []
        "Periods of the CPU limit in which the container had something to run.",
        |c| just(c.stats.cpu_periods)),
    family!(Counter "container_cpu_cfs_throttled_periods_total" []
        "Periods in which the CPU limit held the container back.",
        |c| just(c.stats.cpu_throttled_periods)),
    family!(Counter "container_cpu_cfs_throttled_seconds_total" []
        "Time for which the CPU limit held the container back.",
        |c| just(c.stats.cpu_throttled_ns / NS)),
    family!(Counter "container_cpu_system_seconds_total" []
        "CPU time in the kernel.", |c| just(c.stats.cpu_system_ns / NS)),
    family!(Counter "container_cpu_usage_seconds_total" []
        "CPU time.", |c| just(c.stats.cpu_usage_ns / NS)),
    family!(Counter "container_cpu_user_seconds_total" []
        "CPU time outside of the kernel.", |c| just(c.stats.cpu_user_ns / NS)),
    family!(Gauge "container_file_descriptors" []
        "Open file descriptors of all processes.", |c| descriptors(c, |d| d.open)),
    family!(Gauge "container_fs_inodes_free" ["device"]
        "Free inodes of the writable layer's file system.", |c| filesystem(c, |f| f.inodes_free)),
    family!(Gauge "container_fs_inodes_total" ["device"]
        "Inodes of the writable layer's file system.", |c| filesystem(c, |f| f.inodes)),
    family!(Gauge "container_fs_limit_bytes" ["device"]
        "Size of the writable layer's file system, which the pod's containers share.",
        |c| filesystem(c, |f| f.total_bytes)),
    family!(Counter "container_fs_reads_bytes_total" ["device"]
        "Bytes read from block devices.", |c| by_device(c, |io| io.read_bytes)),
    family!(Counter "container_fs_reads_total" ["device"]
        "Reads from block devices.", |c| by_device(c, |io| io.reads)),
    family!(Gauge "container_fs_usage_bytes" ["device"]
    "Bytes in the writable layer.", |c| {
        let device = c.stats.filesystem.as_ref().map_or("", |fs| &fs.device);
        vec![labelled(device, c.stats.writable_bytes)]
    }),
    family!(Counter "container_fs_writes_bytes_total" ["device"]
        "Bytes written to block devices.", |c| by_device(c, |io| io.write_bytes)),
    family!(Counter "container_fs_writes_total" ["device"]
        "Writes to block devices.", |c| by_device(c, |io| io.writes)),
    family!(Gauge "container_hugetlb_usage_bytes" ["pagesize"]
    "Huge pages in use.", |c| {
        let all = c.stats.huge_pages.iter();
        all.map(|huge| labelled(&huge.size, huge.bytes)).collect()
    }),
    family!(Gauge "container_last_seen" []
        "When the container was read, seconds since the epoch.",
        |c| maybe(whole_seconds(c.stats.time_unix_ns).or(Some(0)))),
    family!(Gauge "container_memory_cache" []
        "File cache.", |c| just(c.stats.memory_cache_bytes)),
    family!(Counter "container_memory_failcnt" []
        "How often the memory limit was run into.", |c| just(c.stats.memory_limit_hits)),
    family!(Counter "container_memory_failures_total" ["failure_type", "scope"]
        "Page faults.", |c| failures(c)),
    family!(Gauge "container_memory_kernel_usage" []
        "Memory the kernel uses for the container.", |c| just(c.stats.memory_kernel_bytes)),
    family!(Gauge "container_memory_mapped_file" []
        "Files mapped into memory.", |c| just(c.stats.memory_mapped_file_bytes)),
    family!(Gauge "container_memory_max_usage_bytes" []
        "The most memory there ever was.", |c| just(c.stats.memory_peak_bytes)),
    family!(Gauge "container_memory_rss" []
        "Anonymous memory.", |c| just(c.stats.memory_rss_bytes)),
    family!(Gauge "container_memory_swap" []
        "Swap in use.", |c| just(c.stats.swap_usage_bytes)),
    family!(Gauge "container_memory_usage_bytes" []
        "All memory, file cache included.", |c| just(c.stats.memory_usage_bytes)),
    family!(Gauge "container_memory_working_set_bytes" []
        "All memory but the file cache that can be dropped at once.",
        |c| just(c.stats.memory_working_set_bytes)),
    family!(Counter "container_oom_events_total" []
        "Processes killed by the OOM killer.", |c| just(c.stats.oom_kills)),
    family!(Counter "container_pressure_cpu_stalled_seconds_total" []
        "Time for which all processes waited for a CPU.",
        |c| pressure(c.stats.cpu_psi.as_ref(), full)),
    family!(Counter "container_pressure_cpu_waiting_seconds_total" []
        "Time for which some process waited for a CPU.",
        |c| pressure(c.stats.cpu_psi.as_ref(), some)),
    family!(Counter "container_pressure_io_stalled_seconds_total" []
        "Time for which all processes waited for input or output.",
        |c| pressure(c.stats.io_psi.as_ref(), full)),
    family!(Counter "container_pressure_io_waiting_seconds_total" []
        "Time for which some process waited for input or output.",
        |c| pressure(c.stats.io_psi.as_ref(), some)),
    family!(Counter "container_pressure_memory_stalled_seconds_total" []
        "Time for which all processes waited for memory.",
        |c| pressure(c.stats.memory_psi.as_ref(), full)),
    family!(Counter "container_pressure_memory_waiting_seconds_total" []
        "Time for which some process waited for memory.",
        |c| pressure(c.stats.memory_psi.as_ref(), some)),
    family!(Gauge "container_processes" []
        "Processes.", |c| just(c.stats.processes)),
    family!(Gauge "container_sockets" []
        "Open sockets of all processes.", |c| descriptors(c, |d| d.sockets)),
    family!(Gauge "container_spec_cpu_period" []
        "Period of the CPU limit, microseconds.", |c| just(c.stats.cpu_period_us)),
    family!(Gauge "container_spec_cpu_quota" []
        "CPU limit: microseconds in each period. Absent without one.",
        |c| maybe(Some(c.stats.cpu_quota_us).filter(|quota| *quota > 0))),
    family!(Gauge "container_spec_cpu_shares" []
        "CPU shares.", |c| just(shares(c))),
    family!(Gauge "container_spec_memory_limit_bytes" []
        "Memory limit; 0 is none.", |c| just(c.stats.memory_limit_bytes)),
    family!(Gauge "container_spec_memory_reservation_limit_bytes" []
        "Memory kept for the container (memory.low); 0 is none.",
        |c| just(c.stats.memory_reservation_bytes)),
    family!(Gauge "container_spec_memory_swap_limit_bytes" []
        "How much swap the container may use; 0 is none.", |c| just(c.stats.swap_limit_bytes)),
    family!(Gauge "container_start_time_seconds" []
        "When the container was started, seconds since the epoch. Absent before.",
        |c| maybe(whole_seconds(c.record.status.started_at))),
    family!(Gauge "container_threads" []
        "Threads of all processes.", |c| just(c.stats.pids)),
    family!(Gauge "container_threads_max" []
        "The most threads allowed; 0 is no limit.", |c| just(c.stats.pids_limit)),
    family!(Gauge "container_ulimits_soft" ["ulimit"]
    "Soft limit of open files of the container's first process.", |c| {
        let one = c.stats.descriptors.as_ref();
        one.map(|d| labelled("max_open_files", d.open_files_soft)).into_iter().collect()
    }),
];
