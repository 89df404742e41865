//! The one place where the parts of a container's runtime spec come together. Not here: what each
//! part is, which the files beside decide.

use bulkhead_proto::{agent, cri};
use oci_spec::runtime::{
    LinuxBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxSeccomp, PosixRlimitBuilder,
    PosixRlimitType, ProcessBuilder, RootBuilder, Spec, SpecBuilder,
};

use super::{
    OciError, apparmor, capabilities, mounts,
    process::{self, ImageProcess},
    resources, seccomp, signal, userns,
};
use crate::volumes;

/// Open files per process: what container images have come to expect of a node.
const OPEN_FILES: u64 = 1_048_576;

/// What a plan is built from.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// CRI's container.
    pub config: &'a cri::ContainerConfig,
    /// CRI's pod.
    pub sandbox: &'a cri::PodSandboxConfig,
    /// The image's part.
    pub image: &'a ImageProcess,
    /// The localhost seccomp profile, if [`seccomp::choose`] said there is one.
    pub localhost_seccomp: Option<&'a LinuxSeccomp>,
    /// What its mounts and devices become.
    pub volumes: &'a volumes::Plan,
    /// Whose kernel it gets.
    pub kernel: Kernel,
}

/// The kernel that a container runs on, and what that decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// The guest's, which is the pod's own.
    Guest,
    /// The node's.
    Node {
        /// io_uring without a seccomp profile (`host.allow_io_uring`).
        io_uring: bool,
        /// It has the default AppArmor profile.
        apparmor: bool,
    },
}

impl Kernel {
    /// Whether it is the node's.
    pub fn is_node(self) -> bool {
        matches!(self, Self::Node { .. })
    }
}

/// What the agent is sent, and what the records keep of it.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The runtime spec.
    pub spec: Spec,
    /// Who the process is, unresolved.
    pub user: agent::User,
    /// Where its process ids live.
    pub pid_mode: agent::PidMode,
    /// With [`agent::PidMode::Target`], the container to join.
    pub pid_target: String,
    /// The number of the signal that stops it.
    pub stop_signal: u32,
}

impl Plan {
    /// The spec as JSON.
    pub fn spec_json(&self) -> Result<Vec<u8>, OciError> {
        serde_json::to_vec(&self.spec).map_err(OciError::Encode)
    }
}

/// Builds the plan of a container.
pub fn build(input: Input<'_>) -> Result<Plan, OciError> {
    let config = input.config;
    refuse_unsupported(config)?;
    let linux = config.linux.clone().unwrap_or_default();
    let context = linux.security_context.unwrap_or_default();
    let asked = linux.resources.unwrap_or_default();
    let (pid_mode, pid_target) = pid_namespace(&context)?;
    let pods = input.sandbox.linux.as_ref();
    let pods = pods.and_then(|linux| linux.security_context.as_ref());
    userns::check_container(
        context.namespace_options.as_ref(),
        pods.and_then(|context| context.namespace_options.as_ref()),
    )?;
    let granted = capabilities::Granted::decide(context.capabilities.as_ref(), context.privileged)?;

    let args = process::args(config, input.image)?;
    let env = process::env(config, input.image, &input.sandbox.hostname)?;
    process::check_size(&args, &env)?;
    let mut process = ProcessBuilder::default()
        .terminal(config.tty)
        .args(args)
        .env(env)
        .cwd(process::cwd(config, input.image)?)
        .capabilities(granted.to_oci()?)
        .no_new_privileges(context.no_new_privs)
        .rlimits(vec![
            PosixRlimitBuilder::default()
                .typ(PosixRlimitType::RlimitNofile)
                .soft(OPEN_FILES)
                .hard(OPEN_FILES)
                .build()?,
        ]);
    process = process.oom_score_adj(oom_score(asked.oom_score_adj)?);
    match (apparmor::choose(&context)?, input.kernel) {
        (apparmor::Choice::Localhost(profile), _) => process = process.apparmor_profile(profile),
        (apparmor::Choice::RuntimeDefault, Kernel::Node { apparmor: true, .. }) => {
            process = process.apparmor_profile(apparmor::DEFAULT);
        }
        (apparmor::Choice::RuntimeDefault | apparmor::Choice::Unconfined, _) => {}
    }

    let mut limits = resources::build(&asked, input.kernel.is_node())?;
    let mut rules = resources::device_rules(context.privileged)?;
    rules.extend(mounts::device_rules(input.volumes)?);
    limits.set_devices(Some(rules));
    let mut kinds = vec![LinuxNamespaceType::Mount, LinuxNamespaceType::Cgroup];
    if pid_mode == agent::PidMode::Container {
        kinds.push(LinuxNamespaceType::Pid);
    }
    let mut namespaces = Vec::new();
    for kind in kinds {
        namespaces.push(LinuxNamespaceBuilder::default().typ(kind).build()?);
    }
    let hidden = |paths: &[String]| {
        if context.privileged {
            Vec::new()
        } else {
            paths.to_vec()
        }
    };
    for path in context.masked_paths.iter().chain(&context.readonly_paths) {
        process::no_nul("masked_paths and readonly_paths", path)?;
    }
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces)
        .resources(limits)
        .devices(mounts::devices(context.privileged, input.volumes)?)
        .masked_paths(hidden(&context.masked_paths))
        .readonly_paths(hidden(&context.readonly_paths));
    if let Some(profile) = filter(&context, &granted, &input)? {
        linux = linux.seccomp(profile);
    }
    let root = RootBuilder::default()
        .path("rootfs")
        .readonly(context.readonly_rootfs)
        .build()?;
    let spec = SpecBuilder::default()
        .version("1.2.0")
        .root(root)
        .process(process.build()?)
        .mounts(mounts::all(
            context.privileged,
            context.readonly_rootfs,
            input.volumes,
        )?)
        .linux(linux.build()?)
        .build()?;
    Ok(Plan {
        spec,
        user: process::user(&context, input.image)?,
        pid_mode,
        pid_target,
        stop_signal: signal::effective(config.stop_signal, &input.image.stop_signal)?,
    })
}

fn filter(
    context: &cri::LinuxContainerSecurityContext,
    granted: &capabilities::Granted,
    input: &Input<'_>,
) -> Result<Option<LinuxSeccomp>, OciError> {
    match seccomp::choose(context)? {
        // A privileged container is root on the node with all there is: nothing is held back.
        seccomp::Choice::Unconfined if context.privileged => Ok(None),
        seccomp::Choice::Unconfined => match input.kernel {
            Kernel::Node {
                io_uring: false, ..
            } => seccomp::without_io_uring().map(Some),
            Kernel::Node { io_uring: true, .. } | Kernel::Guest => Ok(None),
        },
        seccomp::Choice::RuntimeDefault => seccomp::runtime_default(&granted.base).map(Some),
        seccomp::Choice::Localhost(path) => match input.localhost_seccomp {
            Some(profile) => Ok(Some(profile.clone())),
            None => Err(OciError::SeccompFile {
                path,
                source: std::io::Error::other("it was not read beforehand"),
            }),
        },
    }
}

fn refuse_unsupported(config: &cri::ContainerConfig) -> Result<(), OciError> {
    if let Some(device) = config.cdi_devices.first() {
        return Err(OciError::Unsupported {
            what: format!("the CDI device {:?}", device.name),
            advice: "devices of the node cannot be given to a pod in this release of Bulkhead",
        });
    }
    if config.windows.is_some() && config.linux.is_none() {
        return Err(OciError::Unsupported {
            what: "a Windows container".to_owned(),
            advice: "guests run Linux",
        });
    }
    Ok(())
}

fn pid_namespace(
    context: &cri::LinuxContainerSecurityContext,
) -> Result<(agent::PidMode, String), OciError> {
    let Some(options) = &context.namespace_options else {
        return Ok((agent::PidMode::Pod, String::new()));
    };
    match cri::NamespaceMode::try_from(options.pid) {
        Ok(cri::NamespaceMode::Pod) => Ok((agent::PidMode::Pod, String::new())),
        Ok(cri::NamespaceMode::Container) => Ok((agent::PidMode::Container, String::new())),
        Ok(cri::NamespaceMode::Node) => Ok((agent::PidMode::Node, String::new())),
        Ok(cri::NamespaceMode::Target) if !options.target_id.is_empty() => {
            Ok((agent::PidMode::Target, options.target_id.clone()))
        }
        Ok(cri::NamespaceMode::Target) => Err(OciError::Invalid {
            field: "namespace_options.target_id",
            value: String::new(),
            allowed: "the id of a container of the pod, with pid TARGET",
        }),
        Err(_) => Err(OciError::Invalid {
            field: "namespace_options.pid",
            value: options.pid.to_string(),
            allowed: "POD (0), CONTAINER (1), NODE (2) or TARGET (3)",
        }),
    }
}

fn oom_score(asked: i64) -> Result<i32, OciError> {
    i32::try_from(asked)
        .ok()
        .filter(|score| (-1000..=1000).contains(score))
        .ok_or_else(|| OciError::Invalid {
            field: "oom_score_adj",
            value: asked.to_string(),
            allowed: "-1000 to 1000",
        })
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
