//! What the cgroup that the kubelet made for a pod allows the pod: memory and CPU time of its own, and the
//! memory of those above it; and how many processes.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::is_gone;

/// What a pod's cgroup allows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodLimits {
    /// Whether the cgroup is there. One that is not says nothing.
    pub exists: bool,
    /// Its own memory.max, bytes; `None` is "max".
    pub memory: Option<u64>,
    /// Its own cpu.max, in thousandths of a CPU; `None` is "max".
    pub cpus: Option<u64>,
    /// The smallest memory.max of the cgroups above, and whose it is.
    pub above: Option<(u64, PathBuf)>,
}

impl PodLimits {
    /// The smallest memory.max there is, its own or one above, bytes.
    pub fn tightest_memory(&self) -> Option<u64> {
        let above = self.above.as_ref().map(|(bytes, _)| *bytes);
        self.memory.into_iter().chain(above).min()
    }
}

/// What `cgroup`, which lies below `root`, allows. A level without a file has no such limit. Blocks.
///
/// # Errors
/// If a file that is there cannot be read.
pub fn pod_limits(root: &Path, cgroup: &Path) -> io::Result<PodLimits> {
    let bounds = match cgroup.parent() {
        Some(parent) => limits_below(root, parent)?,
        None => PodLimits::default(),
    };
    if cgroup == root || !cgroup.join("cgroup.controllers").exists() {
        return Ok(bounds);
    }
    Ok(PodLimits {
        exists: true,
        memory: number(&cgroup.join("memory.max"))?,
        cpus: read(&cgroup.join("cpu.max"))?.as_deref().and_then(cpus),
        ..bounds
    })
}

/// What a cgroup that is not there would allow below `parent`. Blocks.
///
/// # Errors
/// As [`pod_limits`].
pub fn limits_below(root: &Path, parent: &Path) -> io::Result<PodLimits> {
    Ok(PodLimits {
        above: tightest(root, parent, "memory.max")?,
        ..PodLimits::default()
    })
}

/// The smallest `pids.max` from `cgroup` up to below `root`, which counts processes and threads;
/// `None` if there is no limit. Blocks.
///
/// # Errors
/// If a level cannot be read.
pub fn pids_limit(root: &Path, cgroup: &Path) -> io::Result<Option<u64>> {
    Ok(tightest(root, cgroup, "pids.max")?.map(|(limit, _)| limit))
}

/// The smallest number in `file` from `cgroup` up to below `root`, and whose it is. A level that is
/// not there yet or lacks the controller has none.
fn tightest(root: &Path, cgroup: &Path, file: &str) -> io::Result<Option<(u64, PathBuf)>> {
    let mut least: Option<(u64, PathBuf)> = None;
    for level in cgroup.ancestors().take_while(|level| *level != root) {
        if !level.starts_with(root) {
            break;
        }
        let Some(limit) = number(&level.join(file))? else {
            continue;
        };
        if least.as_ref().is_none_or(|(other, _)| limit < *other) {
            least = Some((limit, level.to_owned()));
        }
    }
    Ok(least)
}

/// "max" or a number (cgroup-v2.rst, Interface Files).
fn number(file: &Path) -> io::Result<Option<u64>> {
    Ok(read(file)?.and_then(|text| text.trim().parse().ok()))
}

/// "QUOTA PERIOD" in microseconds, the quota "max" for none (cgroup-v2.rst, CPU Interface Files).
fn cpus(text: &str) -> Option<u64> {
    let (quota, period) = text.trim().split_once(' ')?;
    let (quota, period): (u64, u64) = (quota.parse().ok()?, period.parse().ok()?);
    Some(quota.saturating_mul(1_000).div_ceil(period.max(1)))
}

fn read(file: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        Err(e) if is_gone(&e) => Ok(None),
        Err(e) => Err(e),
    }
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
    fn own_limits_and_the_tightest_ancestor_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let pod = root.join("kubepods/burstable/pod");
        assert_eq!(pod_limits(root, &pod).unwrap(), PodLimits::default());
        fs::create_dir_all(&pod).unwrap();
        fs::write(pod.join("cgroup.controllers"), "cpu memory\n").unwrap();
        let nothing = PodLimits {
            exists: true,
            ..PodLimits::default()
        };
        assert_eq!(pod_limits(root, &pod).unwrap(), nothing);
        fs::write(root.join("memory.max"), "1").unwrap();
        fs::write(root.join("kubepods/memory.max"), "1000\n").unwrap();
        fs::write(root.join("kubepods/burstable/memory.max"), "max\n").unwrap();
        fs::write(pod.join("memory.max"), "max\n").unwrap();
        fs::write(pod.join("cpu.max"), "max 100000\n").unwrap();
        let bounded = PodLimits {
            above: Some((1_000, root.join("kubepods"))),
            ..nothing
        };
        assert_eq!(pod_limits(root, &pod).unwrap(), bounded);
        fs::write(pod.join("memory.max"), "500\n").unwrap();
        fs::write(pod.join("cpu.max"), "25000 100000\n").unwrap();
        let limited = PodLimits {
            memory: Some(500),
            cpus: Some(250),
            ..bounded
        };
        assert_eq!(pod_limits(root, &pod).unwrap(), limited);
        // The root of the hierarchy is nobody's pod.
        assert!(!pod_limits(root, root).unwrap().exists);
    }

    #[test]
    fn the_tightest_level_counts_for_processes() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let pod = root.join("kubepods/pod");
        fs::create_dir_all(&pod).unwrap();
        assert_eq!(pids_limit(root, &pod).unwrap(), None);
        fs::write(root.join("kubepods/pids.max"), "30000\n").unwrap();
        fs::write(pod.join("pids.max"), "max\n").unwrap();
        assert_eq!(pids_limit(root, &pod).unwrap(), Some(30_000));
        fs::write(pod.join("pids.max"), "1024\n").unwrap();
        assert_eq!(pids_limit(root, &pod).unwrap(), Some(1024));
    }

    #[test]
    fn memory_kills_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(oom_kills(dir.path()), 0);
        fs::write(
            dir.path().join("memory.events"),
            "low 0\noom 1\noom_kill 2\n",
        )
        .unwrap();
        assert_eq!(oom_kills(dir.path()), 2);
    }
}
