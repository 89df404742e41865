//! CreateContainer: validate, plan, hold the image, write the record, plug the layers, one call to
//! the agent. A failure at any step takes back all before it.

use std::{sync::Arc, time::Duration};

use bulkhead_images::{ImageRecord, LayerDisk};
use bulkhead_proto::{agent, cri};
use prost::Message;

use super::{ContainerError, disks, error::in_words, remove::dismantle};
use crate::{
    agent::MAX_MESSAGE,
    app::App,
    clock::now_ns,
    id::new_id,
    logs::LogPath,
    oci::{self, ImageProcess, apparmor, host_devices, seccomp},
    records::{
        ContainerMeta, ContainerRecord, ContainerState, ContainerStatus, MachineKind, SandboxRecord,
    },
    sandbox::{self, Change, Pod},
    status,
    task::{blocking, detached},
    volumes::{self, guest},
};

/// For the agent: the disks have to appear (10 s at most) and the launcher has a minute.
const DEADLINE: Duration = Duration::from_secs(100);
/// What directories without entries may take of the call, which the agent limits to 16 MiB.
const MAX_IMPLIED: usize = 8 << 20;
/// For a creation of the same name that failed to be taken back.
const UNDO_DEADLINE: Duration = Duration::from_secs(20);
/// Between two tries to take a failed creation back.
const UNDO_EVERY: Duration = Duration::from_secs(2);

/// Makes a container in a running pod; gives its id. Runs to its end even if the caller goes away.
pub async fn create(
    app: Arc<App>,
    request: cri::CreateContainerRequest,
) -> Result<String, ContainerError> {
    detached(async move { create_now(&app, request).await }).await
}

async fn create_now(
    app: &Arc<App>,
    request: cri::CreateContainerRequest,
) -> Result<String, ContainerError> {
    let missing = |field| ContainerError::Invalid {
        field,
        what: "is missing".to_owned(),
    };
    let mut config = request.config.ok_or_else(|| missing("config"))?;
    let metadata = config
        .metadata
        .clone()
        .ok_or_else(|| missing("config.metadata"))?;
    if metadata.name.is_empty() {
        return Err(missing("config.metadata.name"));
    }
    let image = config
        .image
        .as_ref()
        .map(|spec| spec.image.clone())
        .unwrap_or_default();
    if image.is_empty() {
        return Err(missing("config.image.image"));
    }
    let sandbox = sandbox::find(app, &request.pod_sandbox_id)?;
    let pod = app.pods.ready(&sandbox.id)?;
    let log = LogPath::new(&sandbox.config.log_directory, &config.log_path)?;

    let id = new_id().map_err(|source| ContainerError::Os {
        action: "make an id".to_owned(),
        source,
    })?;
    let containers = &app.records.containers;
    let cut_off = app
        .containers
        .cut_off(containers, &sandbox.id, &metadata.name, metadata.attempt);
    if let Some(old) = cut_off {
        // If it stays, the name is taken.
        let live = app.containers.live(&old);
        live.wait_gone(containers, &old, UNDO_DEADLINE).await;
    }
    let _name = app.containers.reserve(
        containers,
        &sandbox.id,
        &metadata.name,
        metadata.attempt,
        &id,
    )?;
    let volume_plan = plan_volumes(app, &sandbox, &config).await?;
    let image = app.images.hold(&id, &image).await?;
    let planned = plan(app, &sandbox, &mut config, &image, &id, volume_plan).await;
    let (planned, volumes) = match planned {
        Ok(planned) => planned,
        Err(error) => {
            release_images(app, &id).await;
            return Err(error);
        }
    };
    let layers = app.images.disks(&image);
    let record = ContainerRecord {
        meta: Arc::new(ContainerMeta {
            id: id.clone(),
            sandbox_id: sandbox.id.clone(),
            image_id: image.id.clone(),
            layers: layers.iter().map(|layer| layer.serial.clone()).collect(),
            log_path: log.map(|log| log.path()),
            created_at: now_ns(),
            stop_signal: planned.plan.stop_signal,
            user: None,
            volumes: volumes.records.clone(),
            extra: Default::default(),
            config: config.clone(),
        }),
        status: ContainerStatus {
            state: ContainerState::Creating,
            started_at: 0,
            finished_at: 0,
            exit_code: 0,
            oom_killed: false,
            message: String::new(),
            resources: config
                .linux
                .clone()
                .and_then(|linux| linux.resources)
                .unwrap_or_default(),
        },
    };
    let record = match containers.insert(record).await {
        Ok(record) => record,
        Err(error) => {
            release_images(app, &id).await;
            return Err(error.into());
        }
    };
    match build(app, &pod, &config, planned, &layers, volumes, &id).await {
        Ok(()) => {
            status::container_changed(app, cri::ContainerEventType::ContainerCreatedEvent, &record);
            tracing::info!(
                container = id,
                pod = sandbox.id,
                name = metadata.name,
                image = image.id,
                "container created"
            );
            Ok(id)
        }
        Err(error) => {
            if let Err(undo) = dismantle(app, &record).await {
                let undo = crate::error::chain(&undo);
                tracing::warn!(
                    container = id,
                    undo,
                    "a failed creation is taken back later"
                );
                undo_later(app, &pod, record);
            }
            Err(error)
        }
    }
}

/// Takes a failed creation back as soon as the guest lets it (an agent that was too slow may still
/// be at it), or the pod goes. Until then its record keeps the name taken and the image held.
fn undo_later(app: &Arc<App>, pod: &Pod, record: Arc<ContainerRecord>) {
    let app = Arc::clone(app);
    let mut over = pod.over();
    tokio::spawn(async move {
        loop {
            let ended = over.wait_for(|over| *over);
            let gone = tokio::time::timeout(UNDO_EVERY, ended).await.is_ok();
            match dismantle(&app, &record).await {
                Ok(()) => {
                    tracing::info!(
                        container = record.meta.id,
                        "a failed creation is taken back"
                    );
                    return;
                }
                Err(error) => tracing::debug!(container = record.meta.id, %error, "not yet"),
            }
            if gone {
                // The pod's removal, or the sweep at the next start, does the rest.
                return;
            }
        }
    });
}

/// The agent's part, and the record of it.
#[allow(clippy::too_many_arguments)] // Each is one thing that was decided.
async fn build(
    app: &App,
    pod: &Pod,
    config: &cri::ContainerConfig,
    planned: Planned,
    layers: &[LayerDisk],
    mut volumes: guest::Prepared,
    id: &str,
) -> Result<(), ContainerError> {
    let implied_directories = implied_directories(layers, &volumes.volumes)?;
    let limits = config.linux.as_ref().and_then(|l| l.resources.as_ref());
    if let Some(limits) = limits.filter(|l| l.hugepage_limits.iter().any(|l| l.limit > 0)) {
        // They come on top of the memory the VM was made for.
        sandbox::fit(app, pod, Change::New(limits)).await?;
    }
    guest::attach(app, pod, &mut volumes).await?;
    disks::attach(pod, layers).await?;
    disks::attach(pod, &volumes.layers).await?;
    disks::attach_devices(pod, &volumes.disks).await?;
    let plan = planned.plan;
    let request = agent::CreateContainerRequest {
        container_id: id.to_owned(),
        oci_spec: planned.spec.into(),
        layers: layers.iter().map(|layer| layer.serial.clone()).collect(),
        pid_mode: plan.pid_mode as i32,
        pid_target: plan.pid_target,
        user: Some(plan.user),
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        writable_bytes: 0,
        implied_directories,
        apparmor_policy: planned.apparmor_policy.into(),
        host_cgroup_namespace: planned.host_cgroup_namespace,
        volumes: volumes.volumes,
        block_devices: volumes.block_devices,
    };
    let bytes = request.encoded_len();
    if bytes > MAX_MESSAGE {
        return Err(ContainerError::Invalid {
            field: "config",
            what: format!(
                "with the image's own config and layers takes {bytes} bytes to describe, at most \
                 {MAX_MESSAGE} are possible"
            ),
        });
    }
    let answer = pod
        .agent
        .call("create the container", DEADLINE, |mut agent| async move {
            agent.create_container(request).await
        })
        .await?;
    let user = answer.user.map(|user| (user.uid, user.gid, user.gids));
    app.records
        .containers
        .update(id, move |record| {
            Arc::make_mut(&mut record.meta).user = user;
            record.status.state = ContainerState::Created;
        })
        .await?;
    Ok(())
}

/// [`disks::implied_directories`], if with those of image volumes they fit into the call.
fn implied_directories(
    layers: &[LayerDisk],
    volumes: &[agent::Volume],
) -> Result<Vec<agent::ImpliedDirectories>, ContainerError> {
    let implied = disks::implied_directories(layers);
    let of_volumes = volumes.iter().flat_map(|volume| match &volume.source {
        Some(agent::volume::Source::Image(image)) => image.implied_directories.as_slice(),
        _ => &[],
    });
    let bytes: usize = implied
        .iter()
        .chain(of_volumes)
        .map(Message::encoded_len)
        .sum();
    if bytes > MAX_IMPLIED {
        return Err(ContainerError::Invalid {
            field: "config.image and image volumes",
            what: format!(
                "have layers with {bytes} bytes of directories without an entry of their own; at \
                 most {MAX_IMPLIED} are possible"
            ),
        });
    }
    Ok(implied)
}

/// What the agent is going to be told.
struct Planned {
    plan: oci::Plan,
    /// As JSON.
    spec: Vec<u8>,
    /// The policy that has the container's profile; empty without one.
    apparmor_policy: Vec<u8>,
    /// It sees the host's cgroups.
    host_cgroup_namespace: bool,
}

/// A look at the sources of mounts and devices. Nothing is made and nothing held but descriptors.
async fn plan_volumes(
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
async fn plan(
    app: &App,
    sandbox: &SandboxRecord,
    config: &mut cri::ContainerConfig,
    image: &ImageRecord,
    id: &str,
    mut volume_plan: volumes::Plan,
) -> Result<(Planned, guest::Prepared), ContainerError> {
    volumes::add_anonymous(&mut volume_plan, &image.config.volumes)?;
    let images = guest::hold_images(app, id, &volume_plan).await?;
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
    let prepared = guest::prepare(app, &sandbox.id, id, volume_plan, &images)?;
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

async fn release_images(app: &App, id: &str) {
    let volumes = guest::release_images(app, id).await;
    if let Err(error) = app.images.release(id).await.and(volumes) {
        // The sweep at the next start releases it: no record has this id.
        tracing::warn!(
            container = id,
            error = crate::error::chain(&error),
            "image still held"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_all_images_must_fit_into_the_call() {
        let layer = |serial: &str, bytes: usize| LayerDisk {
            path: "/x".into(),
            serial: serial.to_owned(),
            implicit_dirs: vec![vec![b'd'; bytes]],
        };
        let image = |bytes| {
            let layers = [layer("lowest", MAX_IMPLIED), layer("above", bytes)];
            let source = agent::ImageVolume {
                implied_directories: disks::implied_directories(&layers),
                ..agent::ImageVolume::default()
            };
            agent::Volume {
                source: Some(agent::volume::Source::Image(source)),
                ..agent::Volume::default()
            }
        };
        let own = [layer("a", MAX_IMPLIED), layer("b", MAX_IMPLIED / 2)];
        // What the lowest layer has needs no look below it.
        assert_eq!(implied_directories(&own, &[image(9)]).unwrap().len(), 1);
        let much = implied_directories(&own, &[image(9), image(MAX_IMPLIED / 2)]);
        assert!(matches!(much, Err(ContainerError::Invalid { .. })));
    }
}
