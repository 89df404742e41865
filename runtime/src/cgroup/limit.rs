//! How much memory, and how many processes, a cgroup and its ancestors allow.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The smallest `memory.max` from `cgroup` up to below `root`, and whose it is; `None` if there is
/// no limit. A level that is not there yet or has no memory controller has none. Blocks.
pub fn memory_limit(root: &Path, cgroup: &Path) -> io::Result<Option<(u64, PathBuf)>> {
    tightest(root, cgroup, "memory.max")
}

/// The smallest `pids.max` from `cgroup` up to below `root`, which counts processes and threads; as
/// [`memory_limit`].
///
/// # Errors
/// If a level cannot be read.
pub fn pids_limit(root: &Path, cgroup: &Path) -> io::Result<Option<u64>> {
    Ok(tightest(root, cgroup, "pids.max")?.map(|(limit, _)| limit))
}

fn tightest(root: &Path, cgroup: &Path, file: &str) -> io::Result<Option<(u64, PathBuf)>> {
    let mut least: Option<(u64, PathBuf)> = None;
    for level in cgroup.ancestors().take_while(|level| *level != root) {
        if !level.starts_with(root) {
            break;
        }
        let text = match fs::read_to_string(level.join(file)) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        // "max" or a number (cgroup-v2.rst, Interface Files).
        let Ok(bytes) = text.trim().parse::<u64>() else {
            continue;
        };
        if least.as_ref().is_none_or(|(other, _)| bytes < *other) {
            least = Some((bytes, level.to_owned()));
        }
    }
    Ok(least)
}

/// How many processes of a cgroup the kernel's OOM killer has killed; 0 if that cannot be
/// read. Blocks.
pub fn oom_kills(cgroup: &Path) -> u64 {
    let text = fs::read_to_string(cgroup.join("memory.events")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    line.and_then(|count| count.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_ancestor_counts() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let leaf = root.join("kubepods/pod/leaf");
        fs::create_dir_all(&leaf).unwrap();
        assert_eq!(memory_limit(root, &leaf).unwrap(), None);
        fs::write(root.join("memory.max"), "1").unwrap();
        fs::write(root.join("kubepods/memory.max"), "1000\n").unwrap();
        fs::write(root.join("kubepods/pod/memory.max"), "max\n").unwrap();
        let (bytes, whose) = memory_limit(root, &leaf).unwrap().unwrap();
        assert_eq!((bytes, whose), (1000, root.join("kubepods")));

        assert_eq!(pids_limit(root, &leaf).unwrap(), None);
        fs::write(root.join("kubepods/pids.max"), "30000\n").unwrap();
        fs::write(root.join("kubepods/pod/pids.max"), "max\n").unwrap();
        assert_eq!(pids_limit(root, &leaf).unwrap(), Some(30_000));
        fs::write(root.join("kubepods/pod/pids.max"), "1024\n").unwrap();
        assert_eq!(pids_limit(root, &leaf).unwrap(), Some(1024));

        assert_eq!(oom_kills(&leaf), 0);
        fs::write(leaf.join("memory.events"), "low 0\noom 1\noom_kill 2\n").unwrap();
        assert_eq!(oom_kills(&leaf), 2);
    }
}
