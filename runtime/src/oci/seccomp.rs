//! Seccomp: which profile a container gets, and the runtime's own default one.
//!
//! The filter runs in the guest's kernel, or for a pod on the host in the node's; the daemon only
//! chooses it. A localhost profile is a file of the host, read here (bounded) and sent along in the
//! container's OCI spec as it is: names of calls unknown here are for the agent to judge.

use std::{
    collections::HashSet,
    io::Read as _,
    path::{Path, PathBuf},
};

use bulkhead_proto::cri::{self, security_profile::ProfileType};
use oci_spec::runtime::{
    Arch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompBuilder, LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};
use serde::Deserialize;

use super::{OciError, capabilities::spelled};

/// The default profile as data.
const DEFAULT: &str = include_str!("seccomp_default.toml");

/// No real profile is near this; a path to something endless must not fill the daemon's memory.
const LOCALHOST_LIMIT: u64 = 1024 * 1024;

/// "Operation not permitted".
const EPERM: u32 = 1;

/// Which profile is requested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// No filter.
    Unconfined,
    /// The runtime's own.
    RuntimeDefault,
    /// A file on the host.
    Localhost(PathBuf),
}

/// Reads CRI's choice. Nothing said is unconfined (CRI: a nil profile), a privileged container
/// has no filter whatever is said, and the older text field counts when the newer one is absent.
pub fn choose(context: &cri::LinuxContainerSecurityContext) -> Result<Choice, OciError> {
    if context.privileged {
        return Ok(Choice::Unconfined);
    }
    let Some(profile) = &context.seccomp else {
        #[allow(deprecated)] // Still in the contract; older clients set nothing else.
        return choose_by_text(&context.seccomp_profile_path);
    };
    match ProfileType::try_from(profile.profile_type) {
        Ok(ProfileType::RuntimeDefault) => Ok(Choice::RuntimeDefault),
        Ok(ProfileType::Unconfined) => Ok(Choice::Unconfined),
        Ok(ProfileType::Localhost) => localhost(&profile.localhost_ref),
        Err(_) => Err(OciError::Invalid {
            field: "seccomp.profile_type",
            value: profile.profile_type.to_string(),
            allowed: "RuntimeDefault (0), Unconfined (1) or Localhost (2)",
        }),
    }
}

fn choose_by_text(text: &str) -> Result<Choice, OciError> {
    match text {
        "" | "unconfined" => Ok(Choice::Unconfined),
        "runtime/default" | "docker/default" => Ok(Choice::RuntimeDefault),
        other => match other.strip_prefix("localhost/") {
            Some(path) => localhost(path),
            None => Err(OciError::Invalid {
                field: "seccomp_profile_path",
                value: other.to_owned(),
                allowed: "runtime/default, unconfined or localhost/<absolute path>",
            }),
        },
    }
}

fn localhost(text: &str) -> Result<Choice, OciError> {
    let path = Path::new(text.strip_prefix("localhost/").unwrap_or(text));
    if !path.is_absolute() {
        return Err(OciError::Invalid {
            field: "seccomp.localhost_ref",
            value: text.to_owned(),
            allowed: "the absolute path of a profile on the node",
        });
    }
    Ok(Choice::Localhost(path.to_owned()))
}

/// Reads a localhost profile: the JSON form of OCI's `linux.seccomp`. Blocks.
pub fn read_localhost(path: &Path) -> Result<LinuxSeccomp, OciError> {
    let failed = |source| OciError::SeccompFile {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(std::io::Error::other("it is not a regular file")));
    }
    let mut text = Vec::new();
    file.take(LOCALHOST_LIMIT + 1)
        .read_to_end(&mut text)
        .map_err(failed)?;
    if text.len() as u64 > LOCALHOST_LIMIT {
        return Err(failed(std::io::Error::other("it is larger than 1 MiB")));
    }
    serde_json::from_slice(&text).map_err(|source| OciError::SeccompParse {
        path: path.to_owned(),
        source,
    })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Profile {
    default_errno: u32,
    allow: Vec<Allow>,
    allow_if: Vec<AllowIf>,
    refuse: Vec<Refuse>,
    with_capability: Vec<WithCapability>,
    // Written down so that nothing is left undecided; the default action refuses them.
    #[serde(rename = "never")]
    _never: Vec<Allow>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Allow {
    #[serde(rename = "why")]
    _why: String,
    calls: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AllowIf {
    #[serde(rename = "why")]
    _why: String,
    unless_capability: Option<String>,
    calls: String,
    argument: usize,
    // One of these three forms.
    #[serde(default)]
    equal: Vec<u64>,
    less_than: Option<u64>,
    mask: Option<u64>,
    masked_equal: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Refuse {
    #[serde(rename = "why")]
    _why: String,
    unless_capability: Option<String>,
    calls: String,
    errno: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WithCapability {
    capability: String,
    calls: String,
}

/// The default profile for a container with these capabilities in its bounding set.
pub fn runtime_default(granted: &HashSet<Capability>) -> Result<LinuxSeccomp, OciError> {
    let profile: Profile = toml::from_str(DEFAULT).map_err(OciError::DefaultProfile)?;
    let held: HashSet<String> = granted.iter().copied().map(spelled).collect();
    let lacks = |capability: &Option<String>| match capability {
        Some(name) => !held.contains(name),
        None => true,
    };
    let allow = LinuxSeccompAction::ScmpActAllow;
    let mut rules = Vec::new();
    for group in &profile.allow {
        rules.push(rule(&group.calls, allow, None, Vec::new())?);
    }
    for group in profile
        .with_capability
        .iter()
        .filter(|group| held.contains(&group.capability))
    {
        rules.push(rule(&group.calls, allow, None, Vec::new())?);
    }
    for group in profile
        .allow_if
        .iter()
        .filter(|group| lacks(&group.unless_capability))
    {
        for argument in arguments(group)? {
            rules.push(rule(&group.calls, allow, None, vec![argument])?);
        }
    }
    for group in profile
        .refuse
        .iter()
        .filter(|group| lacks(&group.unless_capability))
    {
        let refuse = LinuxSeccompAction::ScmpActErrno;
        rules.push(rule(&group.calls, refuse, Some(group.errno), Vec::new())?);
    }
    Ok(LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(profile.default_errno)
        .architectures(architectures())
        .syscalls(rules)
        .build()?)
}

/// What stands in for no filter on the node's own kernel: everything is allowed but io_uring.
pub fn without_io_uring() -> Result<LinuxSeccomp, OciError> {
    let calls = "io_uring_setup io_uring_enter io_uring_register";
    let refuse = LinuxSeccompAction::ScmpActErrno;
    Ok(LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActAllow)
        .architectures(architectures())
        .syscalls(vec![rule(calls, refuse, Some(EPERM), Vec::new())?])
        .build()?)
}

/// Every way into the kernel of the machine: a filter that knows one of them only holds for none.
fn architectures() -> Vec<Arch> {
    vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32]
}

fn rule(
    calls: &str,
    action: LinuxSeccompAction,
    errno: Option<u32>,
    args: Vec<LinuxSeccompArg>,
) -> Result<LinuxSyscall, OciError> {
    let names: Vec<String> = calls.split_whitespace().map(str::to_owned).collect();
    let mut builder = LinuxSyscallBuilder::default().names(names).action(action);
    if let Some(errno) = errno {
        builder = builder.errno_ret(errno);
    }
    if !args.is_empty() {
        builder = builder.args(args);
    }
    Ok(builder.build()?)
}

/// The comparisons of a group, one rule each: rules of one call are alternatives.
fn arguments(group: &AllowIf) -> Result<Vec<LinuxSeccompArg>, OciError> {
    let start = || LinuxSeccompArgBuilder::default().index(group.argument);
    let mut result = Vec::new();
    for value in &group.equal {
        let op = LinuxSeccompOperator::ScmpCmpEq;
        result.push(start().op(op).value(*value).build()?);
    }
    if let Some(value) = group.less_than {
        let op = LinuxSeccompOperator::ScmpCmpLt;
        result.push(start().op(op).value(value).build()?);
    }
    if let (Some(mask), Some(equal)) = (group.mask, group.masked_equal) {
        // OCI: `value` is the mask, `valueTwo` what the masked argument must be.
        let op = LinuxSeccompOperator::ScmpCmpMaskedEq;
        result.push(start().op(op).value(mask).value_two(equal).build()?);
    }
    Ok(result)
}

#[cfg(test)]
#[path = "seccomp_tests.rs"]
mod tests;
