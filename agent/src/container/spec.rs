//! The OCI spec as the daemon sent it, adapted to this guest: what the agent decides replaces what
//! the spec has, and what cannot be carried out is refused. Pure.

use std::path::Path;

use bulkhead_proto::agent::ResolvedUser;
use oci_spec::runtime::{LinuxResources, Process, Spec, UserBuilder};

use crate::paths::Paths;

/// Why a spec cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// It is not an OCI spec.
    #[error("reading the container's OCI spec")]
    Json(#[from] serde_json::Error),
    /// Something is missing or impossible.
    #[error("the container's OCI spec: {0}")]
    Invalid(String),
    /// A part could not be put together.
    #[error("assembling the container's OCI spec")]
    Build(#[from] oci_spec::OciSpecError),
}

/// What the agent decides about a container.
#[derive(Debug)]
pub struct Decisions<'a> {
    /// Where things are.
    pub paths: &'a Paths,
    /// Whether its process gets a terminal.
    pub tty: bool,
    /// The pod has a user namespace of its own.
    pub own_users: bool,
}

/// A spec that can be carried out, and what was taken out of it for the agent to do itself.
#[derive(Debug)]
pub struct Prepared {
    /// For the launcher.
    pub spec: Spec,
    /// Limits, for the cgroup.
    pub resources: LinuxResources,
}

fn invalid(text: impl Into<String>) -> SpecError {
    SpecError::Invalid(text.into())
}

/// Reads a spec.
///
/// # Errors
/// If it is not an OCI spec.
pub fn parse(json: &[u8]) -> Result<Spec, SpecError> {
    Ok(serde_json::from_slice(json)?)
}

/// Refuses a process that could not be executed faithfully.
///
/// # Errors
/// Naming what is wrong.
pub fn check_process(process: &Process) -> Result<(), SpecError> {
    let args = process.args().as_deref().unwrap_or_default();
    if args.is_empty() {
        return Err(invalid(
            "process.args is empty: neither the image nor the pod names a command",
        ));
    }
    if args.iter().any(|arg| arg.contains('\0')) {
        return Err(invalid("process.args has a zero byte"));
    }
    for entry in process.env().iter().flatten() {
        let well_formed = entry
            .split_once('=')
            .is_some_and(|(name, _)| !name.is_empty());
        if !well_formed || entry.contains('\0') {
            return Err(invalid(format!(
                "process.env entry {entry:?} is not NAME=value"
            )));
        }
    }
    if !process.cwd().is_absolute() {
        return Err(invalid(format!(
            "process.cwd {:?} is not an absolute path",
            process.cwd().display()
        )));
    }
    Ok(())
}

/// Replaces what the agent decides.
///
/// # Errors
/// For a spec that cannot be carried out.
pub fn prepare(mut spec: Spec, decisions: &Decisions<'_>) -> Result<Prepared, SpecError> {
    let mut process = spec
        .process()
        .clone()
        .ok_or_else(|| invalid("it has no process"))?;
    if process.cwd().as_os_str().is_empty() {
        process.set_cwd("/".into());
    }
    check_process(&process)?;
    // Resolved in the container's root.
    let unresolved = user(process.user(), None)?;
    process.set_user(unresolved);
    process.set_terminal(Some(decisions.tty));
    spec.set_process(Some(process));

    // The lists of hooks that are not empty; asking for them by name would need the deprecated
    // one too.
    let hooks = spec
        .hooks()
        .as_ref()
        .and_then(|hooks| serde_json::to_value(hooks).ok());
    let hooks = hooks
        .and_then(|hooks| hooks.as_object().cloned())
        .unwrap_or_default();
    let hooks = hooks
        .values()
        .any(|list| list.as_array().is_some_and(|list| !list.is_empty()));
    if hooks {
        return Err(invalid(
            "hooks are not supported: the guest has no programs of the host",
        ));
    }
    spec.set_hooks(None);
    // The pod's, set for the whole guest by SetupSandbox.
    spec.set_hostname(None);
    spec.set_domainname(None);
    if let Some(mounts) = spec.mounts_mut() {
        for mount in mounts {
            let source = mount
                .source()
                .as_deref()
                .map(|it| decisions.paths.really(it));
            mount.set_source(source);
        }
    }
    let mut linux = spec
        .linux()
        .clone()
        .ok_or_else(|| invalid("it has no linux section"))?;
    refuse_unsupported(&linux)?;
    let resources = linux.resources().clone().unwrap_or_default();
    linux.set_resources(None);
    spec.set_linux(Some(linux));
    if decisions.own_users {
        bind_kernel_mounts(
            &mut spec,
            &decisions.paths.sysfs(),
            &decisions.paths.mqueue(),
        );
    }
    Ok(Prepared { spec, resources })
}

/// Refuses what would otherwise be ignored silently.
fn refuse_unsupported(linux: &oci_spec::runtime::Linux) -> Result<(), SpecError> {
    let present = [
        (
            "linux.sysctl",
            linux.sysctl().as_ref().is_some_and(|all| !all.is_empty()),
        ),
        ("linux.personality", linux.personality().is_some()),
        ("linux.intelRdt", linux.intel_rdt().is_some()),
        (
            "linux.uidMappings",
            linux
                .uid_mappings()
                .as_ref()
                .is_some_and(|all| !all.is_empty()),
        ),
        (
            "linux.gidMappings",
            linux
                .gid_mappings()
                .as_ref()
                .is_some_and(|all| !all.is_empty()),
        ),
    ];
    match present.iter().find(|(_, present)| *present) {
        Some((field, _)) => Err(invalid(format!("{field} is not supported"))),
        None => Ok(()),
    }
}

/// In a user namespace of its own a container cannot mount what belongs to the guest's network and
/// IPC namespaces (user_namespaces(7)): it gets what the guest has mounted of them.
fn bind_kernel_mounts(spec: &mut Spec, sysfs: &Path, mqueue: &Path) {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for mount in &mut mounts {
        let source = match mount.typ().as_deref() {
            Some("sysfs") => sysfs,
            Some("mqueue") => mqueue,
            _ => continue,
        };
        let mut options = mount.options().clone().unwrap_or_default();
        options.push("bind".to_owned());
        mount.set_typ(Some("bind".to_owned()));
        mount.set_source(Some(source.into()));
        mount.set_options(Some(options));
    }
    spec.set_mounts(Some(mounts));
}

/// A process's user with the numbers it was resolved to.
///
/// # Errors
/// If it cannot be put together.
pub fn user(
    old: &oci_spec::runtime::User,
    resolved: Option<&ResolvedUser>,
) -> Result<oci_spec::runtime::User, SpecError> {
    let mut user = UserBuilder::default();
    if let Some(resolved) = resolved {
        user = user
            .uid(resolved.uid)
            .gid(resolved.gid)
            .additional_gids(resolved.gids.clone());
    }
    let mut user = user.build()?;
    user.set_umask(old.umask());
    Ok(user)
}

/// The process of an exec: the container's, with arguments of its own.
///
/// # Errors
/// For arguments that cannot be carried out.
pub fn exec_process(template: &Process, args: &[String], tty: bool) -> Result<Process, SpecError> {
    let mut process = template.clone();
    process.set_args(Some(args.to_vec()));
    let mut environment = process.env().clone().unwrap_or_default();
    if tty && !environment.iter().any(|entry| entry.starts_with("TERM=")) {
        environment.push("TERM=xterm".to_owned());
    }
    process.set_env(Some(environment));
    process.set_terminal(Some(tty));
    check_process(&process)?;
    Ok(process)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SPEC: &str = r#"{"ociVersion":"1.2.0","hostname":"x",
        "process":{"args":["sh"],"env":["PATH=/bin"],"cwd":"/","user":{"uid":5,"gid":6},
                   "noNewPrivileges":false},
        "root":{"path":"/elsewhere","readonly":true},
        "linux":{"namespaces":[{"type":"network","path":"/x"},{"type":"pid"}],
                 "resources":{"pids":{"limit":5}}}}"#;

    static PATHS: std::sync::LazyLock<Paths> =
        std::sync::LazyLock::new(|| Paths::new(crate::paths::GUEST_BASE));

    fn prepared(json: &str, own_users: bool) -> Result<Prepared, SpecError> {
        let decisions = Decisions {
            paths: &PATHS,
            tty: false,
            own_users,
        };
        prepare(parse(json.as_bytes()).unwrap(), &decisions)
    }

    #[test]
    fn the_agents_decisions_override_the_spec() {
        let prepared = prepared(SPEC, false).unwrap();
        let spec = prepared.spec;
        assert_eq!(spec.root().as_ref().unwrap().readonly(), Some(true));
        assert_eq!(spec.hostname(), &None);
        let process = spec.process().as_ref().unwrap();
        assert_eq!((process.user().uid(), process.user().gid()), (0, 0));
        let linux = spec.linux().as_ref().unwrap();
        assert!(linux.resources().is_none());
        assert_eq!(prepared.resources.pids().as_ref().unwrap().limit(), 5);
    }

    #[test]
    fn in_a_user_namespace_sysfs_and_mqueue_are_bind_mounts() {
        let json = SPEC.replace(
            r#""linux":"#,
            r#""mounts":[{"destination":"/proc","type":"proc","source":"proc"},
               {"destination":"/sys","type":"sysfs","source":"sysfs","options":["ro"]}],
               "linux":"#,
        );
        let prepared = prepared(&json, true).unwrap();
        let mounts = prepared.spec.mounts().clone().unwrap();
        let kinds: Vec<_> = mounts.iter().map(|mount| mount.typ().as_deref()).collect();
        assert_eq!(kinds, [Some("proc"), Some("bind")]);
        assert_eq!(mounts[1].options().as_ref().unwrap(), &["ro", "bind"]);
        assert_eq!(mounts[1].source().as_ref(), Some(&PATHS.sysfs()));
    }

    #[test]
    fn specs_that_cannot_run_are_refused() {
        let broken = [
            SPEC.replace(r#"["sh"]"#, "[]"),
            SPEC.replace(r#"["sh"]"#, r#"["s\u0000h"]"#),
            SPEC.replace("PATH=/bin", "PATH"),
            SPEC.replace("PATH=/bin", "=x"),
            SPEC.replace(r#""cwd":"/""#, r#""cwd":"bin""#),
            SPEC.replace(r#""linux""#, r#""linus""#),
            SPEC.replace(
                r#""linux":"#,
                r#""hooks":{"poststart":[{"path":"/bin/true"}]},"linux":"#,
            ),
            SPEC.replace(
                r#""namespaces":"#,
                r#""sysctl":{"kernel.shmmax":"1"},"namespaces":"#,
            ),
            SPEC.replace(
                r#""namespaces":"#,
                r#""personality":{"domain":"LINUX32"},"namespaces":"#,
            ),
        ];
        for json in broken {
            assert!(prepared(&json, false).is_err(), "{json}");
        }
    }

    #[test]
    fn an_exec_keeps_the_containers_environment() {
        let prepared = prepared(SPEC, false).unwrap();
        let template = prepared.spec.process().clone().unwrap();
        let process = exec_process(&template, &["ls".into()], true).unwrap();
        let env = process.env().as_ref().unwrap();
        assert_eq!(env, &["PATH=/bin", "TERM=xterm"]);
        assert!(exec_process(&template, &[], false).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
