//! The OCI spec as the daemon sent it, made fit for this guest: what the agent decides replaces
//! what stands there, and what cannot be carried out is refused. Pure.

use std::path::{Path, PathBuf};

use bulkhead_proto::agent::{PidMode, ResolvedUser};
use oci_spec::runtime::{
    LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxResources, LinuxSeccomp,
    LinuxSeccompArgBuilder, LinuxSeccompOperator, PosixRlimit, Process, RootBuilder, Spec,
    UserBuilder,
};

use crate::paths::Paths;

/// Why a spec cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// It is no OCI spec.
    #[error("the container's OCI spec is malformed: {0}")]
    Json(#[from] serde_json::Error),
    /// Something is missing or impossible.
    #[error("the container's OCI spec: {0}")]
    Invalid(String),
    /// A part could not be put together.
    #[error("putting the container's spec together failed: {0}")]
    Build(#[from] oci_spec::OciSpecError),
}

/// What the agent decides about a container.
#[derive(Debug)]
pub struct Decisions<'a> {
    /// The container.
    pub id: &'a str,
    /// Where things are.
    pub paths: &'a Paths,
    /// Its root file system.
    pub rootfs: &'a Path,
    /// Its user, as resolved.
    pub user: &'a ResolvedUser,
    /// The user's home directory.
    pub home: &'a str,
    /// Whether its process gets a terminal.
    pub tty: bool,
    /// Whether it sees the host's cgroups.
    pub host_cgroup_namespace: bool,
    /// Its PID namespace.
    pub pid_mode: PidMode,
    /// For POD and TARGET: the namespace's file.
    pub pid_namespace: Option<PathBuf>,
    /// The pod's user namespace, if it has one of its own.
    pub user_namespace: Option<UserNamespace>,
}

/// What a container in a user namespace needs to know.
#[derive(Debug)]
pub struct UserNamespace {
    /// The namespace's file.
    pub file: PathBuf,
    /// A mount of sysfs with nothing mounted in it.
    pub sysfs: PathBuf,
}

/// A spec that can be carried out, and what was taken out of it for the agent to do itself.
#[derive(Debug)]
pub struct Prepared {
    /// For libcontainer.
    pub spec: Spec,
    /// Limits, for the cgroup.
    pub resources: LinuxResources,
}

/// What an exec needs of its container.
#[derive(Debug, Clone)]
pub struct ExecTemplate {
    /// The container's own process.
    pub process: Process,
    /// The container's filter.
    pub seccomp: Option<LinuxSeccomp>,
}

fn invalid(text: impl Into<String>) -> SpecError {
    SpecError::Invalid(text.into())
}

/// Reads a spec.
///
/// # Errors
/// When it is no OCI spec.
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
    let mut environment = process.env().clone().unwrap_or_default();
    if !environment.iter().any(|entry| entry.starts_with("HOME=")) {
        environment.push(format!("HOME={}", decisions.home));
    }
    process.set_env(Some(environment));
    check_process(&process)?;
    let mut user = UserBuilder::default()
        .uid(decisions.user.uid)
        .gid(decisions.user.gid)
        .additional_gids(decisions.user.gids.clone())
        .build()?;
    user.set_umask(process.user().umask());
    process.set_user(user);
    process.set_terminal(Some(decisions.tty));
    // libcontainer loads a filter after the capabilities are gone if this is Some at all, which
    // only works when it is true.
    if process.no_new_privileges() == Some(false) {
        process.set_no_new_privileges(None);
    }
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
    let read_only = spec
        .root()
        .as_ref()
        .and_then(|root| root.readonly())
        .unwrap_or(false);
    spec.set_root(Some(
        RootBuilder::default()
            .path(decisions.rootfs)
            .readonly(read_only)
            .build()?,
    ));

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
    linux.set_namespaces(Some(namespaces(decisions)?));
    linux.set_cgroups_path(Some(decisions.paths.cgroups_path(decisions.id)));
    let resources = linux.resources().clone().unwrap_or_default();
    linux.set_resources(None);
    linux.set_intel_rdt(None);
    linux.set_seccomp(
        linux
            .seccomp()
            .clone()
            .map(masks_for_libcontainer)
            .transpose()?,
    );
    spec.set_linux(Some(linux));
    if let Some(users) = &decisions.user_namespace {
        bind_kernel_mounts(&mut spec, &users.sysfs, &decisions.paths.mqueue());
    }
    Ok(Prepared { spec, resources })
}

/// libcontainer (0.7) takes the two numbers of a masked comparison the wrong way round: OCI's
/// `value` is the mask and `valueTwo` what must be left of it, it makes `valueTwo` the mask. A
/// filter that lets a `clone` through by its flags would let none through.
fn masks_for_libcontainer(mut filter: LinuxSeccomp) -> Result<LinuxSeccomp, SpecError> {
    let mut rules = filter.syscalls().clone().unwrap_or_default();
    for rule in &mut rules {
        let Some(args) = rule.args().clone() else {
            continue;
        };
        let mut fitted = Vec::with_capacity(args.len());
        for arg in args {
            fitted.push(if arg.op() == LinuxSeccompOperator::ScmpCmpMaskedEq {
                LinuxSeccompArgBuilder::default()
                    .index(arg.index())
                    .op(arg.op())
                    .value(arg.value_two().unwrap_or(0))
                    .value_two(arg.value())
                    .build()?
            } else {
                arg
            });
        }
        rule.set_args(Some(fitted));
    }
    filter.set_syscalls(Some(rules));
    Ok(filter)
}

/// The namespaces of a container: its own mounts and cgroups; network, IPC and UTS are the
/// guest's, which are the pod's.
fn namespaces(decisions: &Decisions<'_>) -> Result<Vec<LinuxNamespace>, SpecError> {
    let own = |typ| LinuxNamespaceBuilder::default().typ(typ).build();
    let joined = |typ, path: &Path| LinuxNamespaceBuilder::default().typ(typ).path(path).build();
    let mut list = vec![own(LinuxNamespaceType::Mount)?];
    if !decisions.host_cgroup_namespace {
        list.push(own(LinuxNamespaceType::Cgroup)?);
    }
    match (decisions.pid_mode, &decisions.pid_namespace) {
        (PidMode::Container, _) => list.push(own(LinuxNamespaceType::Pid)?),
        (PidMode::Node, _) => {}
        (PidMode::Pod | PidMode::Target, Some(path)) => {
            list.push(joined(LinuxNamespaceType::Pid, path)?);
        }
        (PidMode::Pod | PidMode::Target, None) => {
            return Err(invalid("the PID namespace to join is not there"));
        }
    }
    if let Some(users) = &decisions.user_namespace {
        list.push(joined(LinuxNamespaceType::User, &users.file)?);
    }
    Ok(list)
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

/// The limits of the container's process.
pub fn rlimits(spec: &Spec) -> Vec<PosixRlimit> {
    let process = spec.process().as_ref();
    process
        .and_then(|process| process.rlimits().clone())
        .unwrap_or_default()
}

/// What later execs need.
///
/// # Errors
/// When the spec was not [`prepare`]d.
pub fn exec_template(spec: &Spec) -> Result<ExecTemplate, SpecError> {
    Ok(ExecTemplate {
        process: spec
            .process()
            .clone()
            .ok_or_else(|| invalid("it has no process"))?,
        seccomp: spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.seccomp().clone()),
    })
}

/// The process of an exec: the container's, with arguments, environment and directory on top.
///
/// # Errors
/// For arguments that cannot be carried out.
pub fn exec_process(
    template: &Process,
    args: &[String],
    env: &[String],
    cwd: &str,
    tty: bool,
) -> Result<Process, SpecError> {
    let mut process = template.clone();
    process.set_args(Some(args.to_vec()));
    let mut environment = process.env().clone().unwrap_or_default();
    for entry in env {
        let name = entry
            .split_once('=')
            .map_or(entry.as_str(), |(name, _)| name);
        environment.retain(|old| old.split_once('=').is_none_or(|(old, _)| old != name));
        environment.push(entry.clone());
    }
    if tty && !environment.iter().any(|entry| entry.starts_with("TERM=")) {
        environment.push("TERM=xterm".to_owned());
    }
    process.set_env(Some(environment));
    if !cwd.is_empty() {
        process.set_cwd(cwd.into());
    }
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

    fn decisions<'a>(user: &'a ResolvedUser, mode: PidMode) -> Decisions<'a> {
        Decisions {
            id: "c1",
            paths: &PATHS,
            rootfs: Path::new("/run/r"),
            user,
            home: "/home/u",
            tty: false,
            host_cgroup_namespace: false,
            pid_mode: mode,
            pid_namespace: None,
            user_namespace: None,
        }
    }

    fn user() -> ResolvedUser {
        ResolvedUser {
            uid: 7,
            gid: 8,
            gids: vec![8, 9],
        }
    }

    #[test]
    fn the_agents_decisions_win() {
        let user = user();
        let prepared = prepare(
            parse(SPEC.as_bytes()).unwrap(),
            &decisions(&user, PidMode::Container),
        )
        .unwrap();
        let spec = prepared.spec;
        assert_eq!(spec.root().as_ref().unwrap().path(), Path::new("/run/r"));
        assert_eq!(spec.root().as_ref().unwrap().readonly(), Some(true));
        assert_eq!(spec.hostname(), &None);
        let process = spec.process().as_ref().unwrap();
        assert_eq!((process.user().uid(), process.user().gid()), (7, 8));
        assert_eq!(process.no_new_privileges(), None);
        assert!(
            process
                .env()
                .as_ref()
                .unwrap()
                .contains(&"HOME=/home/u".to_owned())
        );
        let linux = spec.linux().as_ref().unwrap();
        let kinds: Vec<_> = linux
            .namespaces()
            .iter()
            .flatten()
            .map(LinuxNamespace::typ)
            .collect();
        use LinuxNamespaceType::{Cgroup, Mount, Pid};
        assert_eq!(kinds, [Mount, Cgroup, Pid]);
        assert_eq!(
            linux.cgroups_path().as_deref(),
            Some(Path::new("/bulkhead/c1"))
        );
        assert!(linux.resources().is_none());
        assert_eq!(prepared.resources.pids().as_ref().unwrap().limit(), 5);
    }

    #[test]
    fn a_user_namespace_is_joined_and_the_kernels_file_systems_are_bound() {
        let user = user();
        let json = SPEC.replace(
            r#""linux":"#,
            r#""mounts":[{"destination":"/proc","type":"proc","source":"proc"},
               {"destination":"/sys","type":"sysfs","source":"sysfs","options":["ro"]}],
               "linux":"#,
        );
        let own = Decisions {
            user_namespace: Some(UserNamespace {
                file: "/proc/9/ns/user".into(),
                sysfs: "/run/sysfs".into(),
            }),
            ..decisions(&user, PidMode::Container)
        };
        let prepared = prepare(parse(json.as_bytes()).unwrap(), &own).unwrap();
        let linux = prepared.spec.linux().clone().unwrap();
        let joined = linux.namespaces().iter().flatten();
        let joined: Vec<_> = joined
            .filter(|one| one.typ() == LinuxNamespaceType::User)
            .map(|one| one.path().clone())
            .collect();
        assert_eq!(joined, [Some("/proc/9/ns/user".into())]);
        let mounts = prepared.spec.mounts().clone().unwrap();
        let kinds: Vec<_> = mounts.iter().map(|mount| mount.typ().as_deref()).collect();
        assert_eq!(kinds, [Some("proc"), Some("bind")]);
        assert_eq!(mounts[1].options().as_ref().unwrap(), &["ro", "bind"]);
        assert_eq!(mounts[1].source().as_deref(), Some(Path::new("/run/sysfs")));
    }

    #[test]
    fn a_pod_namespace_must_be_there() {
        let user = user();
        let spec = parse(SPEC.as_bytes()).unwrap();
        assert!(prepare(spec, &decisions(&user, PidMode::Pod)).is_err());
    }

    #[test]
    fn what_cannot_be_run_is_refused() {
        let user = user();
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
        ];
        for json in broken {
            let spec = parse(json.as_bytes()).unwrap();
            assert!(
                prepare(spec, &decisions(&user, PidMode::Node)).is_err(),
                "{json}"
            );
        }
    }

    #[test]
    fn an_exec_keeps_the_containers_environment() {
        let user = user();
        let prepared = prepare(
            parse(SPEC.as_bytes()).unwrap(),
            &decisions(&user, PidMode::Node),
        )
        .unwrap();
        let template = exec_template(&prepared.spec).unwrap();
        let process = exec_process(
            &template.process,
            &["ls".into()],
            &["PATH=/x".into()],
            "",
            true,
        )
        .unwrap();
        let env = process.env().as_ref().unwrap();
        assert_eq!(env, &["HOME=/home/u", "PATH=/x", "TERM=xterm"]);
        assert!(exec_process(&template.process, &[], &[], "", false).is_err());
    }

    #[test]
    fn masked_comparisons_are_turned_for_libcontainer() {
        let json = r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["clone"],
            "action":"SCMP_ACT_ALLOW","args":[
            {"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"},
            {"index":1,"value":5,"op":"SCMP_CMP_EQ"}]}]}"#;
        let filter = masks_for_libcontainer(serde_json::from_str(json).unwrap()).unwrap();
        let args = filter.syscalls().as_ref().unwrap()[0]
            .args()
            .clone()
            .unwrap();
        assert_eq!(
            (args[0].value(), args[0].value_two()),
            (0, Some(2_114_060_288))
        );
        assert_eq!((args[1].value(), args[1].value_two()), (5, None));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
