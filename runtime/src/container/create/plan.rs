//! What a container is going to be, decided without the guest: volumes, the OCI spec, policies.

use bulkhead_images::ImageRecord;
use bulkhead_proto::{agent, cri};

use super::super::{ContainerError, error::in_words};
use crate::{
    app::App,
    error::chain,
    oci::{self, ImageProcess, apparmor, host_devices, seccomp},
    records::{ContainerState, MachineKind, SandboxRecord},
    task::blocking,
    volumes::{self, pod_volumes},
};

/// What the agent is going to be told.
pub(super) struct Planned {
    pub(super) plan: oci::Plan,
    /// As JSON.
    pub(super) spec: Vec<u8>,
    /// The policy that has the container's profile; empty without one.
    pub(super) apparmor_policy: Vec<u8>,
    /// It sees the host's cgroups.
    pub(super) host_cgroup_namespace: bool,
}

/// A look at the sources of mounts and devices. Nothing is made and nothing held but descriptors.
pub(super) async fn plan_volumes(
    app: &App,
    sandbox: &SandboxRecord,
    config: &cri::ContainerConfig,
) -> Result<volumes::Plan, ContainerError> {
    let metadata = sandbox.config.metadata.clone().unwrap_or_default();
    let context = volumes::PlanContext {
        handler: match sandbox.machine {
            MachineKind::Vm => volumes::Handler::Kvm,
            MachineKind::Host => volumes::Handler::Host,
        },
        pod_uid: metadata.uid,
        sockets: app.config.volumes.sockets.clone(),
        share: sandbox.has_share(),
    };
    let config = config.clone();
    blocking(move || Ok(volumes::inspect(&config, &context)?)).await
}

/// Everything else that can be refused without the guest. What a failure leaves is images held.
pub(super) async fn plan(
    app: &App,
    sandbox: &SandboxRecord,
    config: &mut cri::ContainerConfig,
    image: &ImageRecord,
    id: &str,
    mut volume_plan: volumes::Plan,
) -> Result<(Planned, pod_volumes::Prepared), ContainerError> {
    volumes::add_anonymous(&mut volume_plan, &image.config.volumes)?;
    let images = pod_volumes::hold_images(app, id, &volume_plan).await?;
    for (number, image) in &images {
        // ContainerStatus tells which image it is that was mounted.
        if let Some(spec) = config
            .mounts
            .get_mut(*number)
            .and_then(|m| m.image.as_mut())
        {
            spec.image_ref = image.id.clone();
        }
    }
    let context = config
        .linux
        .clone()
        .and_then(|linux| linux.security_context)
        .unwrap_or_default();
    let localhost = match seccomp::choose(&context)? {
        seccomp::Choice::Localhost(path) => {
            Some(blocking(move || Ok::<_, ContainerError>(seccomp::read_localhost(&path)?)).await?)
        }
        seccomp::Choice::Unconfined | seccomp::Choice::RuntimeDefault => None,
    };
    let kernel = match sandbox.machine {
        MachineKind::Vm => oci::Kernel::Guest,
        MachineKind::Host => oci::Kernel::Node {
            io_uring: app.config.host.allow_io_uring,
            apparmor: apparmor::choose(&context)? == apparmor::Choice::RuntimeDefault
                && app.host_profile.ready().await?,
        },
    };
    let on_host = kernel.is_node();
    let mut plan = oci::build(oci::Input {
        config,
        sandbox: &sandbox.config,
        image: &image_process(image),
        localhost_seccomp: localhost.as_ref(),
        volumes: &volume_plan,
        kernel,
    })?;
    if plan.pid_mode == agent::PidMode::Target {
        check_target(app, sandbox, &plan.pid_target)?;
    }
    if on_host && context.privileged {
        plan = blocking(move || {
            host_devices::give_all(&mut plan)?;
            Ok::<_, ContainerError>(plan)
        })
        .await?;
    }
    let apparmor_policy = match apparmor::choose(&context)? {
        // The host's own kernel has it, or the agent refuses it: nothing is loaded there for a pod.
        apparmor::Choice::Localhost(_) if on_host => Vec::new(),
        apparmor::Choice::Localhost(profile) => {
            apparmor::NodeProfiles::default().policy(&profile).await?
        }
        apparmor::Choice::Unconfined | apparmor::Choice::RuntimeDefault => Vec::new(),
    };
    let planned = Planned {
        spec: plan.spec_json()?,
        plan,
        apparmor_policy,
        host_cgroup_namespace: on_host && context.privileged,
    };
    let prepared = pod_volumes::prepare(app, &sandbox.id, id, volume_plan, &images)?;
    Ok((planned, prepared))
}

fn check_target(app: &App, sandbox: &SandboxRecord, id: &str) -> Result<(), ContainerError> {
    let refused = |why| ContainerError::Target {
        id: id.to_owned(),
        why,
    };
    let target = app
        .records
        .containers
        .get(id)
        .ok_or_else(|| refused("there is none"))?;
    if target.meta.sandbox_id != sandbox.id {
        return Err(refused("it is in another pod"));
    }
    match target.status.state {
        ContainerState::Running => Ok(()),
        other => Err(refused(in_words(other))),
    }
}

fn image_process(image: &ImageRecord) -> ImageProcess {
    ImageProcess {
        user: image.config.user.clone(),
        env: image.config.env.clone(),
        entrypoint: image.config.entrypoint.clone(),
        cmd: image.config.cmd.clone(),
        working_dir: image.config.working_dir.clone(),
        stop_signal: image.config.stop_signal.clone(),
    }
}

pub(super) async fn release_images(app: &App, id: &str) {
    let volumes = pod_volumes::release_images(app, id).await;
    if let Err(error) = app.images.release(id).await.and(volumes) {
        // The sweep at the next start releases it: no record has this id.
        tracing::warn!(container = id, error = chain(&error), "image still held");
    }
}
