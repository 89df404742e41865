//! One container's figures, from its cgroup. Files that are not there (a controller the guest
//! kernel lacks) read as 0, as the kubelet's own reader has it.

use std::path::Path;

use bulkhead_proto::agent::{ContainerStats, HugePages};

use super::read::{psi, read};
use super::text;
use crate::clock;

/// Use and limits. `written` is the container's writable layer, in bytes and inodes.
pub fn container(id: &str, cgroup: &Path, written: (u64, u64)) -> ContainerStats {
    let file = |name: &str| read(cgroup.join(name));
    // "max" means unlimited, and does not parse.
    let number = |name: &str| file(name).trim().parse().unwrap_or(0);
    let (memory, events, cpu) = (file("memory.stat"), file("memory.events"), file("cpu.stat"));
    let in_memory = |key| text::value(&memory, key).unwrap_or(0);
    let nanoseconds = |key| {
        text::value(&cpu, key)
            .unwrap_or(0)
            .saturating_mul(text::NS_PER_US)
    };
    let usage: u64 = number("memory.current");
    let (quota, period) = text::cpu_max(&file("cpu.max"));
    ContainerStats {
        container_id: id.to_owned(),
        time_unix_ns: clock::realtime_ns(),
        cpu_usage_ns: nanoseconds("usage_usec"),
        cpu_user_ns: nanoseconds("user_usec"),
        cpu_system_ns: nanoseconds("system_usec"),
        cpu_periods: text::value(&cpu, "nr_periods").unwrap_or(0),
        cpu_throttled_periods: text::value(&cpu, "nr_throttled").unwrap_or(0),
        cpu_throttled_ns: nanoseconds("throttled_usec"),
        cpu_quota_us: quota,
        cpu_period_us: period,
        memory_usage_bytes: usage,
        memory_working_set_bytes: usage.saturating_sub(in_memory("inactive_file")),
        memory_rss_bytes: in_memory("anon"),
        memory_cache_bytes: in_memory("file"),
        memory_mapped_file_bytes: in_memory("file_mapped"),
        memory_kernel_bytes: in_memory("kernel"),
        memory_peak_bytes: number("memory.peak"),
        memory_limit_hits: text::value(&events, "max").unwrap_or(0),
        oom_kills: text::value(&events, "oom_kill").unwrap_or(0),
        page_faults: in_memory("pgfault"),
        major_page_faults: in_memory("pgmajfault"),
        memory_limit_bytes: number("memory.max"),
        memory_reservation_bytes: number("memory.low"),
        pids: number("pids.current"),
        pids_limit: number("pids.max"),
        writable_bytes: written.0,
        writable_inodes: written.1,
        cpu_psi: psi(cgroup.join("cpu.pressure")),
        memory_psi: psi(cgroup.join("memory.pressure")),
        io_psi: psi(cgroup.join("io.pressure")),
        swap_usage_bytes: number("memory.swap.current"),
        swap_limit_bytes: number("memory.swap.max"),
        io: text::device_io(&file("io.stat")).collect(),
        huge_pages: huge_pages(cgroup),
        // Filled in by who knows the processes and the disk.
        processes: 0,
        filesystem: None,
        descriptors: None,
    }
}

/// `hugetlb.2MB.current` and the like: which sizes there are depends on the processor.
fn huge_pages(cgroup: &Path) -> Vec<HugePages> {
    let Ok(entries) = std::fs::read_dir(cgroup) else {
        return Vec::new();
    };
    let mut sizes: Vec<HugePages> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let size = name.strip_prefix("hugetlb.")?.strip_suffix(".current")?;
            // `hugetlb.2MB.rsvd.current` counts reservations.
            if size.contains('.') {
                return None;
            }
            Some(HugePages {
                size: size.to_owned(),
                bytes: read(entry.path()).trim().parse().ok()?,
            })
        })
        .collect();
    sizes.sort_by(|a, b| a.size.cmp(&b.size));
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_files_become_figures() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("memory.current", "1000\n");
        write("memory.peak", "2000\n");
        write("memory.max", "max\n");
        write(
            "memory.stat",
            "anon 300\nfile 400\nkernel 50\nfile_mapped 60\ninactive_file 100\npgfault 7\n",
        );
        write(
            "memory.events",
            "low 0\nhigh 0\nmax 5\noom 1\noom_kill 2\noom_group_kill 0\n",
        );
        write(
            "cpu.stat",
            "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 4\nnr_throttled 3\n\
             throttled_usec 9\n",
        );
        write("cpu.max", "20000 100000\n");
        write("pids.max", "max\n");
        write(
            "io.stat",
            "254:16 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0\n",
        );
        write("hugetlb.2MB.current", "4096\n");
        write("hugetlb.2MB.rsvd.current", "1\n");
        write("hugetlb.1GB.current", "0\n");
        let got = container("c", dir.path(), (9, 8));
        assert_eq!((got.cpu_usage_ns, got.cpu_throttled_ns), (30_000, 9_000));
        assert_eq!((got.cpu_quota_us, got.cpu_period_us), (20_000, 100_000));
        assert_eq!(
            (got.memory_working_set_bytes, got.memory_peak_bytes),
            (900, 2000)
        );
        assert_eq!((got.memory_cache_bytes, got.memory_kernel_bytes), (400, 50));
        assert_eq!(
            (got.memory_limit_bytes, got.pids_limit),
            (0, 0),
            "max is none"
        );
        assert_eq!((got.memory_limit_hits, got.oom_kills), (5, 2));
        assert_eq!(got.io.len(), 1);
        assert_eq!((got.io[0].major, got.io[0].write_bytes), (254, 20));
        let sizes: Vec<_> = got.huge_pages.iter().map(|h| h.size.as_str()).collect();
        assert_eq!(sizes, ["1GB", "2MB"]);
    }
}
