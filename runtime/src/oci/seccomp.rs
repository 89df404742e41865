//! Seccomp: which profile a container gets, and the runtime's own default one.
//!
//! The filter runs in the guest's kernel; the daemon only chooses it. A localhost profile is a
//! file of the host, read here (bounded) and sent along in the container's OCI spec.

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

/// Which profile is asked for.
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
    not_equal: Option<u64>,
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
        .architectures(vec![
            Arch::ScmpArchX86_64,
            Arch::ScmpArchX86,
            Arch::ScmpArchX32,
        ])
        .syscalls(rules)
        .build()?)
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
    if let Some(value) = group.not_equal {
        let op = LinuxSeccompOperator::ScmpCmpNe;
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
mod tests {
    use super::*;

    fn allowed(caps: &[Capability]) -> HashSet<String> {
        let profile = runtime_default(&caps.iter().copied().collect()).unwrap();
        profile
            .syscalls()
            .iter()
            .flatten()
            .filter(|rule| {
                rule.action() == LinuxSeccompAction::ScmpActAllow && rule.args().is_none()
            })
            .flat_map(|rule| rule.names().clone())
            .collect()
    }

    #[test]
    fn an_ordinary_program_runs_and_the_kernels_levers_are_out_of_reach() {
        let calls = allowed(&[]);
        for call in [
            "read",
            "openat",
            "execve",
            "futex",
            "mmap",
            "epoll_wait",
            "getrandom",
            "wait4",
        ] {
            assert!(calls.contains(call), "{call}");
        }
        for call in [
            "mount",
            "unshare",
            "setns",
            "reboot",
            "kexec_load",
            "init_module",
            "bpf",
            "keyctl",
            "add_key",
            "io_uring_setup",
            "userfaultfd",
            "perf_event_open",
            "sethostname",
            "chroot",
            "swapon",
            "open_by_handle_at",
            "settimeofday",
            "iopl",
            "pivot_root",
            "clone",
            "clone3",
        ] {
            assert!(!calls.contains(call), "{call}");
        }
    }

    #[test]
    fn capabilities_open_what_belongs_to_them() {
        let admin = allowed(&[Capability::SysAdmin]);
        for call in ["mount", "sethostname", "clone", "clone3", "unshare"] {
            assert!(admin.contains(call), "{call}");
        }
        assert!(!admin.contains("init_module"));
        assert!(allowed(&[Capability::SysModule]).contains("init_module"));
        assert!(allowed(&[Capability::SysChroot]).contains("chroot"));
    }

    #[test]
    fn no_call_stands_in_two_plain_groups() {
        let profile: Profile = toml::from_str(DEFAULT).unwrap();
        let mut seen = HashSet::new();
        for call in profile
            .allow
            .iter()
            .flat_map(|group| group.calls.split_whitespace())
        {
            assert!(seen.insert(call), "{call} stands twice");
        }
        for group in &profile.with_capability {
            let known = Granted::of(&group.capability);
            assert!(known, "{} is no capability", group.capability);
            for call in group.calls.split_whitespace() {
                assert!(
                    !seen.contains(call),
                    "{call} is allowed without {}",
                    group.capability
                );
            }
        }
        for group in &profile.allow_if {
            let forms = [
                !group.equal.is_empty(),
                group.not_equal.is_some(),
                group.mask.is_some(),
            ];
            assert_eq!(
                forms.iter().filter(|there| **there).count(),
                1,
                "{}",
                group.calls
            );
            assert_eq!(group.mask.is_some(), group.masked_equal.is_some());
        }
    }

    struct Granted;
    impl Granted {
        fn of(name: &str) -> bool {
            let asked = cri::Capability {
                add_capabilities: vec![name.into()],
                ..Default::default()
            };
            super::super::capabilities::Granted::decide(Some(&asked), false).is_ok()
        }
    }

    #[test]
    fn without_sys_admin_clone_is_conditional_and_clone3_is_enosys() {
        let profile = runtime_default(&HashSet::new()).unwrap();
        let find = |name: &str| {
            let rules = profile.syscalls().iter().flatten();
            rules
                .filter(|rule| rule.names().iter().any(|n| n == name))
                .collect::<Vec<_>>()
        };
        let clone = find("clone");
        assert_eq!(clone.len(), 1);
        let arg = clone[0].args().as_ref().unwrap()[0];
        assert_eq!((arg.value(), arg.value_two()), (0x7e02_0000, Some(0)));
        assert_eq!(find("clone3")[0].errno_ret(), Some(38));
        assert_eq!(find("personality").len(), 5);
    }

    #[test]
    fn choices() {
        let mut context = cri::LinuxContainerSecurityContext::default();
        assert_eq!(choose(&context).unwrap(), Choice::Unconfined);
        context.seccomp = Some(cri::SecurityProfile::default());
        assert_eq!(choose(&context).unwrap(), Choice::RuntimeDefault);
        context.seccomp = Some(cri::SecurityProfile {
            profile_type: ProfileType::Localhost as i32,
            localhost_ref: "/var/lib/kubelet/seccomp/a.json".into(),
        });
        assert_eq!(
            choose(&context).unwrap(),
            Choice::Localhost("/var/lib/kubelet/seccomp/a.json".into())
        );
        context.privileged = true;
        assert_eq!(choose(&context).unwrap(), Choice::Unconfined);
        context.privileged = false;
        context.seccomp = Some(cri::SecurityProfile {
            profile_type: 2,
            localhost_ref: "a".into(),
        });
        assert!(choose(&context).is_err());
        context.seccomp = Some(cri::SecurityProfile {
            profile_type: 9,
            ..Default::default()
        });
        assert!(choose(&context).is_err());
    }

    #[test]
    fn localhost_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.json");
        std::fs::write(
            &path,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["sethostname"],"action":"SCMP_ACT_ERRNO"}]}"#,
        )
        .unwrap();
        let profile = read_localhost(&path).unwrap();
        assert_eq!(profile.default_action(), LinuxSeccompAction::ScmpActAllow);
        assert!(matches!(
            read_localhost(&dir.path().join("none")),
            Err(OciError::SeccompFile { .. })
        ));
        assert!(matches!(
            read_localhost(dir.path()),
            Err(OciError::SeccompFile { .. })
        ));
        std::fs::write(&path, "{").unwrap();
        assert!(matches!(
            read_localhost(&path),
            Err(OciError::SeccompParse { .. })
        ));
        std::fs::write(&path, vec![b' '; 1024 * 1024 + 1]).unwrap();
        assert!(matches!(
            read_localhost(&path),
            Err(OciError::SeccompFile { .. })
        ));
    }
}
