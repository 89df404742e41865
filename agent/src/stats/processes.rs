//! What the processes of a cgroup hold: how many there are, their open descriptors, their limit.
//! Bounded, because the processes are the container's to make.

use std::fs;
use std::path::Path;

use bulkhead_proto::agent::Descriptors;

use super::{read, text};

/// How many cgroups below a container's are looked at, and how deep.
const MAX_CGROUPS: usize = 1024;
/// How many processes are looked at for their descriptors, and how many descriptors in all.
/// Beyond, the answer is too small, never late.
const MAX_PROCESSES: usize = 2048;
const MAX_DESCRIPTORS: u64 = 50_000;

/// The processes in a cgroup and below it, in the order the kernel has them.
pub fn of_cgroup(cgroup: &Path) -> Vec<u32> {
    let mut pids = Vec::new();
    let mut pending = vec![cgroup.to_owned()];
    let mut seen = 0;
    while let Some(directory) = pending.pop() {
        seen += 1;
        let procs = read(directory.join("cgroup.procs"));
        pids.extend(procs.lines().filter_map(|line| line.parse::<u32>().ok()));
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries.flatten() {
            if seen + pending.len() >= MAX_CGROUPS {
                break;
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                pending.push(entry.path());
            }
        }
    }
    pids
}

/// Their descriptors, and the soft limit of the first.
pub fn descriptors(proc: &Path, pids: &[u32]) -> Descriptors {
    let mut counted = Descriptors::default();
    if let Some(first) = pids.first() {
        let limits = read(proc.join(first.to_string()).join("limits"));
        counted.open_files_soft = text::open_files_soft(&limits).unwrap_or(0);
    }
    for pid in pids.iter().take(MAX_PROCESSES) {
        // A process that ends meanwhile has none.
        let Ok(entries) = fs::read_dir(proc.join(pid.to_string()).join("fd")) else {
            continue;
        };
        for entry in entries.flatten() {
            if counted.open >= MAX_DESCRIPTORS {
                return counted;
            }
            counted.open += 1;
            let socket = fs::read_link(entry.path())
                .is_ok_and(|target| target.to_string_lossy().starts_with("socket:["));
            counted.sockets += u64::from(socket);
        }
    }
    counted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_of_nested_cgroups_count_and_sockets_are_counted_separately() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("inner")).unwrap();
        fs::write(dir.path().join("cgroup.procs"), "7\n8\n").unwrap();
        fs::write(dir.path().join("inner/cgroup.procs"), "9\n").unwrap();
        assert_eq!(of_cgroup(dir.path()), [7, 8, 9]);
        assert!(of_cgroup(&dir.path().join("gone")).is_empty());

        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let counted = descriptors(Path::new("/proc"), &[std::process::id(), u32::MAX]);
        assert!(counted.sockets >= 2, "{counted:?} with {one:?}");
        assert!(counted.open > counted.sockets, "{counted:?}");
        assert!(counted.open_files_soft > 0, "{counted:?}");
    }
}
