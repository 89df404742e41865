//! Building a container: layers, root file system, user, spec, cgroup, process. What was made is
//! unmade in reverse when a later step fails.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bulkhead_proto::agent::{CreateContainerRequest, PidMode, ResolvedUser, volume};

use super::implied;
use super::rootfs::Rootfs;
use super::spec::{self, Decisions};
use super::{
    Container, ContainerError, Containers, Phase, Slot, cgroup, check_id, device_filter, lock,
    socket_filter, watch,
};
use crate::apparmor;
use crate::huge_pages;
use crate::launcher::message::{CreateRequest, Request};
use crate::paths::Paths;
use crate::process::{Process, Reading, Streams, exit, give_streams};
use crate::user::{self, Identity};
use crate::userns::{self, IdMap};
use crate::volumes::{Prepared, Volumes, image};

/// What blocking steps leave for the launch.
struct Ground {
    prepared: spec::Prepared,
    identity: Identity,
}

impl Containers {
    /// Builds a container up to the point before its process starts.
    ///
    /// # Errors
    /// See [`ContainerError`]; nothing is left of the container then.
    pub async fn create(
        self: &Arc<Self>,
        request: CreateContainerRequest,
    ) -> Result<(u32, ResolvedUser), ContainerError> {
        let id = request.container_id.clone();
        check_id("container", &id)?;
        if request.writable_bytes != 0 {
            return Err(ContainerError::Unsupported(
                "a size limit of one container's writable layer",
            ));
        }
        self.reserve(&id)?;
        match self.build(request).await {
            Ok((container, user)) => {
                let pid = u32::try_from(container.process.pid()).unwrap_or(0);
                lock(&self.slots).insert(id, Slot::Ready(container));
                Ok((pid, user))
            }
            Err(error) => {
                lock(&self.slots).remove(&id);
                Err(error)
            }
        }
    }

    fn reserve(&self, id: &str) -> Result<(), ContainerError> {
        let mut slots = lock(&self.slots);
        if slots.contains_key(id) {
            return Err(ContainerError::Exists(id.to_owned()));
        }
        slots.insert(id.to_owned(), Slot::Busy);
        Ok(())
    }

    async fn build(
        self: &Arc<Self>,
        request: CreateContainerRequest,
    ) -> Result<(Arc<Container>, ResolvedUser), ContainerError> {
        let id = request.container_id.clone();
        let pid_mode = PidMode::try_from(request.pid_mode).map_err(|_| {
            spec::SpecError::Invalid(format!("pid_mode {} is none", request.pid_mode))
        })?;
        let pid_namespace = self.pid_namespace(pid_mode, &request.pid_target).await?;
        let user_namespace = self.user_namespace().await?;
        // Image volumes' layers are held like the container's own.
        let held: Vec<String> = all_layers(&request);
        let mut layers = self.disks.acquire_layers(&held).await?;
        layers.truncate(request.layers.len());
        let rootfs = Rootfs {
            target: self.paths.container(&id).join("rootfs"),
            scratch: self.paths.scratch().join(&id),
        };
        match self
            .build_on(
                &request,
                Namespaces {
                    pid_mode,
                    pid: pid_namespace,
                    user: user_namespace,
                    sysfs: self.paths.sysfs(),
                },
                layers,
                rootfs.clone(),
            )
            .await
        {
            Ok(built) => Ok(built),
            Err(error) => {
                self.clear(&id, rootfs).await;
                self.disks.release_layers(&held).await;
                Err(error)
            }
        }
    }

    async fn build_on(
        self: &Arc<Self>,
        request: &CreateContainerRequest,
        namespaces: Namespaces,
        layers: Vec<PathBuf>,
        rootfs: Rootfs,
    ) -> Result<(Arc<Container>, ResolvedUser), ContainerError> {
        let id = &request.container_id;
        let cgroup = self.paths.cgroup(id);
        let bundle = self.paths.container(id);
        let own_users = namespaces.user.is_some();
        let users = namespaces.user.as_ref();
        let volumes = self.volumes.prepare(request, &self.disks, users).await?;
        let ground = {
            let (request, rootfs) = (request.clone(), rootfs.clone());
            let paths = self.paths.clone();
            let work = move || lay_ground(&request, volumes, &namespaces, &layers, &rootfs, &paths);
            tokio::task::spawn_blocking(work)
                .await
                .map_err(|_| ContainerError::Cancelled)??
        };
        let (streams, stdio) = if request.tty {
            (Streams::default(), None)
        } else {
            let (streams, stdio) = Streams::pipes(request.stdin)?;
            (streams, Some(stdio))
        };
        let user = &ground.identity.user;
        let owner = userns::outside(self.user_namespace.get(), user.uid, user.gid);
        give_streams(stdio.as_ref(), None, owner)?;
        let launch = Request::Create(CreateRequest {
            id: id.clone(),
            bundle,
            state: self.paths.runtime_state(),
            tty: request.tty,
            rlimits: if own_users {
                spec::rlimits(&ground.prepared.spec)
            } else {
                Vec::new()
            },
        });
        tracing::debug!("create: ground laid");
        let launched = self.launcher.launch(launch, stdio).await?;
        tracing::debug!("create: launched");
        if let Err(error) = give_streams(None, launched.terminal.as_ref(), owner) {
            if let Some(pid) = rustix::process::Pid::from_raw(launched.pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            return Err(error.into());
        }
        let (sender, exit) = exit::channel();
        let process = Process::new(
            launched.pid,
            streams,
            launched.terminal,
            request.stdin,
            Reading::Kept,
            exit,
        )?;
        let container = Arc::new(Container {
            id: id.clone(),
            process,
            template: spec::exec_template(&ground.prepared.spec)?,
            stdin_once: request.stdin_once,
            layers: all_layers(request),
            rootfs,
            cgroup,
            waiting: tokio::sync::Mutex::new(launched.status),
            started_at_unix_ns: Mutex::new(None),
            execs: Mutex::default(),
        });
        watch::first_process(Arc::clone(self), &container, launched.end, sender);
        Ok((container, ground.identity.user))
    }

    /// The file of the PID namespace a container joins, if it joins one.
    async fn pid_namespace(
        &self,
        mode: PidMode,
        target: &str,
    ) -> Result<Option<PathBuf>, ContainerError> {
        let pid = match mode {
            PidMode::Container | PidMode::Node => return Ok(None),
            PidMode::Pod => self.pid_holder().await?,
            PidMode::Target => {
                let target = self.get(target)?;
                if target.phase() == Phase::Exited {
                    return Err(ContainerError::WrongState {
                        id: target.id.clone(),
                        state: Phase::Exited.name(),
                        needed: "running, to share its PID namespace",
                    });
                }
                target.process.pid()
            }
        };
        Ok(Some(PathBuf::from(format!("/proc/{pid}/ns/pid"))))
    }

    /// The first process of the pod's shared PID namespace, started when it is first needed.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn pid_holder(&self) -> Result<i32, ContainerError> {
        let mut holder = self.pid_holder.lock().await;
        if let Some(pid) = *holder {
            return Ok(pid);
        }
        let map = self.user_namespace.get().copied();
        let launched = self.launcher.launch(Request::PidHolder(map), None).await?;
        *holder = Some(launched.pid);
        Ok(launched.pid)
    }

    /// Gives the pod a user namespace, before it has any container.
    ///
    /// # Errors
    /// When it has another one already, or the kernel refuses.
    pub async fn set_user_namespace(&self, map: IdMap) -> Result<(), ContainerError> {
        if *self.user_namespace.get_or_init(|| map) != map {
            return Err(ContainerError::Unsupported(
                "another user namespace for the same pod",
            ));
        }
        let path = self.paths.sysfs();
        userns::mount_sysfs(&path).map_err(|error| ContainerError::File {
            what: "mounting sysfs at",
            path,
            error,
        })?;
        self.pid_holder().await.map(drop)
    }

    /// The pod's user namespace, if it is not the guest's own: the file that is it, and its ids.
    async fn user_namespace(&self) -> Result<Option<(PathBuf, IdMap)>, ContainerError> {
        let Some(map) = self.user_namespace.get() else {
            return Ok(None);
        };
        let pid = self.pid_holder().await?;
        Ok(Some((format!("/proc/{pid}/ns/user").into(), *map)))
    }

    /// Removes what a container is made of: cgroup, mount, files. Goes on after a failure, which
    /// is logged: the next step does not depend on it.
    pub(super) async fn clear(&self, id: &str, rootfs: Rootfs) {
        let (cgroup, bundle) = (self.paths.cgroup(id), self.paths.container(id));
        let state = self.paths.runtime_state().join(id);
        let (paths, id) = (self.paths.clone(), id.to_owned());
        let work = move || {
            let steps: [(&str, Result<(), ContainerError>); 6] = [
                (
                    "cgroup",
                    cgroup::kill(&cgroup)
                        .and_then(|()| cgroup::remove(&cgroup))
                        .map_err(Into::into),
                ),
                ("mount", rootfs.unmount().map_err(Into::into)),
                ("volumes", Volumes::clear(&paths, &id).map_err(Into::into)),
                ("written files", rootfs.remove_written().map_err(Into::into)),
                ("state", remove_directory(&state)),
                ("bundle", remove_directory(&bundle)),
            ];
            for (what, result) in steps {
                if let Err(error) = result {
                    tracing::warn!(what, %error, "a container was not removed in full");
                }
            }
        };
        // Its end is awaited: the same id may come back at once.
        let _ = tokio::task::spawn_blocking(work).await;
    }
}

fn remove_directory(path: &Path) -> Result<(), ContainerError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(ContainerError::File {
            what: "removing",
            path: path.to_owned(),
            error,
        }),
        _ => Ok(()),
    }
}

/// The serials of a container's layers, then its image volumes'.
fn all_layers(request: &CreateContainerRequest) -> Vec<String> {
    let mut all = request.layers.clone();
    for volume in &request.volumes {
        if let Some(volume::Source::Image(image)) = &volume.source {
            all.extend(image.layers.iter().cloned());
        }
    }
    all
}

/// The namespaces a container joins or gets.
struct Namespaces {
    pid_mode: PidMode,
    /// For POD and TARGET: its file.
    pid: Option<PathBuf>,
    /// The pod's user namespace: its file, and its ids.
    user: Option<(PathBuf, IdMap)>,
    /// What is bound in place of a sysfs of its own there.
    sysfs: PathBuf,
}

/// The steps that block on files and mounts.
fn lay_ground(
    request: &CreateContainerRequest,
    volumes: Prepared,
    namespaces: &Namespaces,
    layers: &[PathBuf],
    rootfs: &Rootfs,
    paths: &Paths,
) -> Result<Ground, ContainerError> {
    let cgroup = &paths.cgroup(&request.container_id);
    let bundle = &paths.container(&request.container_id);
    tracing::debug!("create: layers are there");
    let mut parsed = spec::parse(&request.oci_spec)?;
    volumes.apply(&mut parsed)?;
    let map = match &namespaces.user {
        Some((file, map)) => {
            rootfs.mount_mapped(layers, file, map)?;
            Some(map)
        }
        None => {
            rootfs.mount(layers)?;
            None
        }
    };
    let implied = image::by_place(&request.layers, &request.implied_directories);
    implied::adopt(&rootfs.target, layers, &implied, map)?;
    tracing::debug!("create: root file system");
    let identity = user::resolve(&rootfs.target, &request.user.clone().unwrap_or_default())?;
    if let Some(map) = map {
        map.check(&identity.user)?;
    }
    let prepared = spec::prepare(
        parsed,
        &Decisions {
            id: &request.container_id,
            paths,
            rootfs: &rootfs.target,
            user: &identity.user,
            home: &identity.home,
            tty: request.tty,
            // A guest has one root of cgroups, which is out of every container's sight.
            host_cgroup_namespace: request.host_cgroup_namespace && paths.host().is_some(),
            pid_mode: namespaces.pid_mode,
            pid_namespace: namespaces.pid.clone(),
            user_namespace: namespaces
                .user
                .as_ref()
                .map(|(file, _)| spec::UserNamespace {
                    file: file.clone(),
                    sysfs: namespaces.sysfs.clone(),
                }),
        },
    )?;
    if let Some(process) = prepared.spec.process() {
        user::make_working_directory(&rootfs.target, process.cwd(), map)?;
        if let Some(profile) = process.apparmor_profile() {
            apparmor::load(&request.apparmor_policy, profile)?;
        }
    }
    tracing::debug!("create: user and spec");
    // On a host they are the host's to reserve.
    if paths.host().is_none() {
        huge_pages::allow_limits(&prepared.resources)?;
    }
    cgroup::make(cgroup)?;
    cgroup::apply(cgroup, &prepared.resources)?;
    device_filter::attach(cgroup, &prepared.resources)?;
    socket_filter::attach(cgroup, &prepared.resources, paths)?;
    tracing::debug!("create: cgroup");
    let config = bundle.join("config.json");
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(bundle)?;
        // Its environment is nobody else's business, on a host least of all.
        let mut options = fs::OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        options
            .open(&config)?
            .write_all(&serde_json::to_vec(&prepared.spec)?)
    };
    write().map_err(|error| ContainerError::File {
        what: "writing",
        path: config.clone(),
        error,
    })?;
    Ok(Ground { prepared, identity })
}
