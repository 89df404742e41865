//! What a container's process inherits from its worker: OOM score, limits, AppArmor profile.

use std::fs;

use oci_spec::runtime::{PosixRlimit, PosixRlimitType, Process};

use super::errno::errno_text;
use super::message::{Failure, FailureKind};

fn failed(what: &str, error: std::io::Error) -> Failure {
    Failure::new(FailureKind::Internal, format!("{what}: {error}"))
}

/// Sets what the process inherits: here, before any namespace is joined, through the agent's own
/// procfs.
///
/// # Errors
/// If the kernel refuses.
pub fn set(process: &Process) -> Result<(), Failure> {
    if let Some(score) = process.oom_score_adj() {
        fs::write("/proc/self/oom_score_adj", score.to_string())
            .map_err(|error| failed("setting the OOM score", error))?;
    }
    for limit in process.rlimits().iter().flatten() {
        set_limit(limit)?;
    }
    if let Some(profile) = process.apparmor_profile() {
        // Takes effect at execve; forks inherit it.
        let text = format!("exec {profile}");
        fs::write("/proc/self/attr/apparmor/exec", &text)
            .or_else(|_| fs::write("/proc/self/attr/exec", &text))
            .map_err(|error| failed("setting the AppArmor profile", error))?;
    }
    Ok(())
}

fn set_limit(limit: &PosixRlimit) -> Result<(), Failure> {
    use rustix::process::Resource;
    let resource = match limit.typ() {
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitStack => Resource::Stack,
    };
    let value = |value: u64| (value != libc::RLIM_INFINITY).then_some(value);
    let limits = rustix::process::Rlimit {
        current: value(limit.soft()),
        maximum: value(limit.hard()),
    };
    rustix::process::setrlimit(resource, limits).map_err(|error| {
        let text = format!("setting the limit {:?}: {}", limit.typ(), errno_text(error));
        Failure::new(FailureKind::InvalidSpec, text)
    })
}
