//! A container's cgroup (v2): limits from the OCI spec, killing, waiting for emptiness, removal,
//! the count of memory kills. Creating and updating share one code path, and a refused value names
//! its file.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use tokio::io::Interest;
use tokio::time::{Instant, timeout_at};

use crate::async_fd;

/// What can go wrong with a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// It could not be made.
    #[error("making cgroup {}", path.display())]
    Make {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// A limit was refused.
    #[error("writing {value:?} to {} (the kernel rejects the value, or the cgroup lacks the controller)", path.display())]
    Limit {
        /// Which file.
        path: PathBuf,
        /// What was written.
        value: String,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// A name in `unified` that is not a file of a cgroup.
    #[error("cgroup file name {0:?} is not CONTROLLER.NAME")]
    BadName(String),
    /// Killing or removing failed.
    #[error("{what} cgroup {}", path.display())]
    End {
        /// The step.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// Processes survive SIGKILL.
    #[error("processes in cgroup {} are still there after SIGKILL; they wait in the guest's kernel", path.display())]
    StillPopulated {
        /// Which.
        path: PathBuf,
    },
}

/// Makes a cgroup; one that is there already is taken.
///
/// # Errors
/// If the kernel refuses.
pub fn make(path: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(CgroupError::Make {
            path: path.to_owned(),
            error,
        }),
        _ => Ok(()),
    }
}

/// Applies what the resources name; what is absent stays.
///
/// # Errors
/// The first value the kernel refuses.
pub fn apply(path: &Path, resources: &LinuxResources) -> Result<(), CgroupError> {
    for (file, value) in settings(resources)? {
        // A limit on what the kernel does not have needs no file: pages of a size it lacks, and
        // swap without swap support.
        let nothing = file.starts_with("hugetlb.") && value == "0" || file == "memory.swap.max";
        let file = path.join(file);
        if nothing && !file.exists() {
            continue;
        }
        fs::write(&file, &value).map_err(|error| CgroupError::Limit {
            path: file,
            value,
            error,
        })?;
    }
    Ok(())
}

/// Bounds the processes and threads of a cgroup and all below it; 0 means any number. What is there
/// already stays.
///
/// # Errors
/// If the kernel refuses.
pub fn limit_pids(path: &Path, limit: u64) -> Result<(), CgroupError> {
    let path = path.join("pids.max");
    let value = match limit {
        // Without the controller there is none to lift.
        0 if !path.exists() => return Ok(()),
        0 => "max".to_owned(),
        limit => limit.to_string(),
    };
    fs::write(&path, &value).map_err(|error| CgroupError::Limit { path, value, error })
}

/// The files to write for resources, in order. Pure.
///
/// # Errors
/// For names in `unified` that are not files of a cgroup.
pub fn settings(resources: &LinuxResources) -> Result<Vec<(String, String)>, CgroupError> {
    let mut files = Vec::new();
    let mut set = |file: &str, value: String| files.push((file.to_owned(), value));
    if let Some(cpu) = resources.cpu() {
        cpu_settings(cpu, &mut set);
    }
    if let Some(memory) = resources.memory() {
        memory_settings(memory, &mut set);
    }
    if let Some(limit) = resources.pids().as_ref().map(|pids| pids.limit()) {
        set("pids.max", or_max(limit, |limit| limit > 0));
    }
    for huge in resources.hugepage_limits().iter().flatten() {
        for what in ["max", "rsvd.max"] {
            let file = format!("hugetlb.{}.{what}", huge.page_size());
            set(&file, huge.limit().to_string());
        }
    }
    if let Some(io) = resources.block_io() {
        io_settings(io, &mut set);
    }
    let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
    unified.sort();
    for (name, value) in unified {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if !name.contains('.') || name.starts_with('.') || !name.chars().all(good) {
            return Err(CgroupError::BadName(name.clone()));
        }
        set(name, value.clone());
    }
    for (name, _) in &files {
        // Page sizes and unified names come from outside.
        if name.contains('/') {
            return Err(CgroupError::BadName(name.clone()));
        }
    }
    Ok(files)
}

fn or_max(value: i64, limits: impl Fn(i64) -> bool) -> String {
    if limits(value) {
        value.to_string()
    } else {
        "max".to_owned()
    }
}

fn cpu_settings(cpu: &LinuxCpu, set: &mut impl FnMut(&str, String)) {
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        set("cpu.weight", weight_of_shares(shares).to_string());
    }
    match (cpu.quota(), cpu.period()) {
        (None, None) => {}
        (quota, period) => {
            let quota = quota.map_or("max".to_owned(), |quota| or_max(quota, |q| q > 0));
            let period = period.filter(|period| *period != 0).unwrap_or(100_000);
            set("cpu.max", format!("{quota} {period}"));
        }
    }
    if let Some(burst) = cpu.burst() {
        set("cpu.max.burst", burst.to_string());
    }
    if let Some(idle) = cpu.idle() {
        set("cpu.idle", idle.to_string());
    }
    for (file, list) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(list) = list.as_ref().filter(|list| !list.is_empty()) {
            set(file, list.clone());
        }
    }
}

/// cgroup v1's 2..262144 on cgroup v2's 1..10000, so that the default 1024 is the default 100:
/// the curve the container runtimes agreed on (KEP-2254's linear map gave 1024 a weight of 39).
fn weight_of_shares(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    #[allow(clippy::cast_precision_loss)] // below 2^18
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 1 to 10000
    let weight = 10f64.powf(exponent).ceil() as u64;
    weight.clamp(1, 10_000)
}

fn memory_settings(memory: &LinuxMemory, set: &mut impl FnMut(&str, String)) {
    if let Some(reservation) = memory.reservation() {
        set("memory.low", or_max(reservation, |bytes| bytes >= 0));
    }
    let limit = memory.limit().filter(|limit| *limit != 0);
    if let Some(limit) = limit {
        set("memory.max", or_max(limit, |bytes| bytes > 0));
    }
    // OCI counts memory and swap together, cgroup v2 swap alone.
    if let Some(swap) = memory.swap().filter(|swap| *swap != 0) {
        match limit {
            Some(limit) if swap > 0 && limit > 0 => {
                set(
                    "memory.swap.max",
                    swap.saturating_sub(limit).max(0).to_string(),
                );
            }
            _ if swap < 0 => set("memory.swap.max", "max".to_owned()),
            _ => {}
        }
    }
}

fn io_settings(io: &LinuxBlockIo, set: &mut impl FnMut(&str, String)) {
    if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
        // OCI's 10..1000 on 1..10000.
        let weight = 1 + (u64::from(weight).saturating_sub(10)) * 9999 / 990;
        set("io.weight", weight.clamp(1, 10_000).to_string());
    }
    let throttles = [
        ("rbps", io.throttle_read_bps_device()),
        ("wbps", io.throttle_write_bps_device()),
        ("riops", io.throttle_read_iops_device()),
        ("wiops", io.throttle_write_iops_device()),
    ];
    for (key, devices) in throttles {
        for device in devices.iter().flatten() {
            let mut value = format!("{}:{} {key}=", device.major(), device.minor());
            let _ = match device.rate() {
                0 => write!(value, "max"),
                rate => write!(value, "{rate}"),
            };
            set("io.max", value);
        }
    }
}

/// How many processes of the cgroup the OOM killer ended; 0 if the cgroup is gone.
pub fn oom_kills(path: &Path) -> u64 {
    read_key(&path.join("memory.events"), "oom_kill").unwrap_or(0)
}

/// One number of a file of `name value` lines.
pub fn read_key(file: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        if name == key {
            value.trim().parse().ok()
        } else {
            None
        }
    })
}

/// Whether the cgroup is no longer there: its files answer ENODEV to who has opened them before it
/// was removed.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || Errno::from_io_error(error) == Some(Errno::NODEV)
}

/// Kills every process in the cgroup and below. A missing cgroup is not an error.
///
/// # Errors
/// If the kernel refuses.
pub fn kill(path: &Path) -> Result<(), CgroupError> {
    match fs::write(path.join("cgroup.kill"), "1") {
        Err(error) if !is_gone(&error) => Err(CgroupError::End {
            what: "killing",
            path: path.to_owned(),
            error,
        }),
        _ => Ok(()),
    }
}

/// Sends a signal to every process in the cgroup and below.
///
/// # Errors
/// If the list cannot be read; a process that is gone is not an error.
pub fn signal(path: &Path, signal: Signal) -> Result<(), CgroupError> {
    if signal == Signal::KILL {
        return kill(path);
    }
    let error = |error| CgroupError::End {
        what: "signalling",
        path: path.to_owned(),
        error,
    };
    let list = match fs::read_to_string(path.join("cgroup.procs")) {
        Ok(list) => list,
        Err(cause) if is_gone(&cause) => return Ok(()),
        Err(cause) => return Err(error(cause)),
    };
    for pid in list
        .lines()
        .filter_map(|line| line.parse().ok())
        .filter_map(Pid::from_raw)
    {
        let _ = rustix::process::kill_process(pid, signal);
    }
    for child in children(path) {
        self::signal(&child, signal)?;
    }
    Ok(())
}

fn children(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Waits until no process is left in the cgroup and below.
///
/// # Errors
/// At the deadline, or if the kernel's files cannot be read.
pub async fn wait_empty(path: &Path, deadline: Instant) -> Result<(), CgroupError> {
    timeout_at(deadline, emptied(path))
        .await
        .unwrap_or_else(|_| {
            Err(CgroupError::StillPopulated {
                path: path.to_owned(),
            })
        })
}

/// Returns once no process is left in the cgroup and below; has no deadline of its own.
///
/// # Errors
/// If the kernel's files cannot be read.
pub async fn emptied(path: &Path) -> Result<(), CgroupError> {
    let error = |error| CgroupError::End {
        what: "watching",
        path: path.to_owned(),
        error,
    };
    let events = path.join("cgroup.events");
    let file = match File::open(&events) {
        Ok(file) => file,
        Err(cause) if is_gone(&cause) => return Ok(()),
        Err(cause) => return Err(error(cause)),
    };
    // The kernel marks the file POLLPRI when its text changes; reading it clears the mark.
    let watch = async_fd::watch(file, Interest::PRIORITY).map_err(error)?;
    loop {
        if read_key(&events, "populated").unwrap_or(0) == 0 {
            return Ok(());
        }
        let mut ready = watch.ready(Interest::PRIORITY).await.map_err(error)?;
        ready.clear_ready();
    }
}

/// Removes an empty cgroup and those the container made below it. A missing cgroup is not an error.
///
/// # Errors
/// If a process is left.
pub fn remove(path: &Path) -> Result<(), CgroupError> {
    for child in children(path) {
        remove(&child)?;
    }
    match fs::remove_dir(path) {
        Err(error) if !is_gone(&error) => Err(CgroupError::End {
            what: "removing",
            path: path.to_owned(),
            error,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(json: &str) -> Vec<(String, String)> {
        settings(&serde_json::from_str(json).unwrap()).unwrap()
    }

    fn pair(file: &str, value: &str) -> (String, String) {
        (file.into(), value.into())
    }

    #[test]
    fn limits_map_to_cgroup_files() {
        assert_eq!(
            files(
                r#"{"cpu":{"shares":1024,"quota":50000,"period":100000,"cpus":"0-1"},
                    "memory":{"limit":67108864,"swap":67108864,"reservation":1048576},
                    "pids":{"limit":100},
                    "unified":{"memory.oom.group":"1"}}"#
            ),
            [
                pair("cpu.weight", "100"),
                pair("cpu.max", "50000 100000"),
                pair("cpuset.cpus", "0-1"),
                pair("memory.low", "1048576"),
                pair("memory.max", "67108864"),
                pair("memory.swap.max", "0"),
                pair("pids.max", "100"),
                pair("memory.oom.group", "1"),
            ]
        );
    }

    #[test]
    fn no_limit_is_max() {
        assert_eq!(
            files(r#"{"cpu":{"quota":-1},"memory":{"limit":-1,"swap":-1},"pids":{"limit":-1}}"#),
            [
                pair("cpu.max", "max 100000"),
                pair("memory.max", "max"),
                pair("memory.swap.max", "max"),
                pair("pids.max", "max"),
            ]
        );
        assert_eq!(files("{}"), []);
    }

    #[test]
    fn swap_excludes_memory_and_lists_are_verbatim() {
        assert_eq!(
            files(
                r#"{"cpu":{"cpus":"0,2-3","mems":"0"},"memory":{"limit":67108864,"swap":100663296},
                    "hugepageLimits":[{"pageSize":"2MB","limit":4194304}]}"#
            ),
            [
                pair("cpuset.cpus", "0,2-3"),
                pair("cpuset.mems", "0"),
                pair("memory.max", "67108864"),
                pair("memory.swap.max", "33554432"),
                pair("hugetlb.2MB.max", "4194304"),
                pair("hugetlb.2MB.rsvd.max", "4194304"),
            ]
        );
        // Without a limit of memory there is nothing to count from.
        assert_eq!(files(r#"{"memory":{"swap":100663296}}"#), []);
        assert_eq!(
            files(r#"{"memory":{"swap":-1}}"#),
            [pair("memory.swap.max", "max")]
        );
    }

    #[test]
    fn limits_on_what_the_kernel_lacks_are_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let limits = |json: &str| apply(dir.path(), &serde_json::from_str(json).unwrap());
        // A plain directory takes every file: what must not be written is not there afterwards.
        limits(r#"{"memory":{"swap":-1},"hugepageLimits":[{"pageSize":"1GB","limit":0}]}"#)
            .unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        fs::write(dir.path().join("memory.swap.max"), "max").unwrap();
        limits(r#"{"memory":{"limit":8388608,"swap":8388608}}"#).unwrap();
        let written = fs::read_to_string(dir.path().join("memory.swap.max")).unwrap();
        assert_eq!(written, "0");
    }

    #[test]
    fn a_limit_on_processes_is_set_and_lifted() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pids.max");
        limit_pids(dir.path(), 0).unwrap();
        assert!(!file.exists());
        for (limit, text) in [(64, "64"), (0, "max"), (u64::MAX, "18446744073709551615")] {
            limit_pids(dir.path(), limit).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
        }
        assert!(limit_pids(&dir.path().join("none"), 1).is_err());
    }

    #[test]
    fn cpu_shares_keep_minimum_default_and_maximum() {
        let weights = [0, 2, 1024, 262_144, u64::MAX].map(weight_of_shares);
        assert_eq!(weights, [1, 1, 100, 10_000, 10_000]);
    }

    #[test]
    fn names_that_are_paths_are_refused() {
        for name in ["../memory.max", "cgroup", "a/b.c", ".x"] {
            let json = format!(r#"{{"unified":{{"{name}":"1"}}}}"#);
            let resources = serde_json::from_str(&json).unwrap();
            assert!(
                matches!(settings(&resources), Err(CgroupError::BadName(_))),
                "{name}"
            );
        }
    }
}
