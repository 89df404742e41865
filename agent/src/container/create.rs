//! Building a container: layers, root file system, user, spec, cgroup, process. What was made is
//! unmade in reverse when a later step fails.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bulkhead_proto::agent::{CreateContainerRequest, PidMode, ResolvedUser, volume};
use prost::Message;

use super::implied;
use super::namespaces::{self, SharedNamespaces};
use super::rootfs::Rootfs;
use super::spec::{self, Decisions};
use super::{
    Container, ContainerError, Containers, Phase, Slot, cgroup, check_id, device_filter, monitor,
    socket_filter,
};
use crate::apparmor;
use crate::blocking;
use crate::huge_pages;
use crate::launcher::message::{CreateRequest, PidNamespace, Request};
use crate::mutex::lock;
use crate::paths::Paths;
use crate::process::{Process, Reading, Streams, exit, kill_new};
use crate::report::Report;
use crate::userns::{self, IdMap};
use crate::volumes::{Prepared, Volumes, image};

impl Containers {
    /// Builds a container up to the point before its process starts.
    ///
    /// # Errors
    /// See [`ContainerError`]; nothing is left of the container then.
    pub async fn create(
        self: &Arc<Self>,
        request: CreateContainerRequest,
    ) -> Result<Option<ResolvedUser>, ContainerError> {
        let id = request.container_id.clone();
        check_id("container", &id)?;
        self.reserve(&id)?;
        match self.build(request).await {
            Ok((container, user)) => {
                lock(&self.slots).insert(id, Slot::Ready(container));
                Ok(user)
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
    ) -> Result<(Arc<Container>, Option<ResolvedUser>), ContainerError> {
        let id = request.container_id.clone();
        let pid_mode = PidMode::try_from(request.pid_mode).map_err(|_| {
            spec::SpecError::Invalid(format!("pid_mode {} is unknown", request.pid_mode))
        })?;
        let namespaces = self.namespaces(pid_mode, &request.pid_target).await?;
        // Image volumes' layers are held like the container's own.
        let held: Vec<String> = all_layers(&request);
        let mut layers = self
            .disks
            .acquire_layers(&held, &request.layer_places)
            .await?;
        layers.truncate(request.layers.len());
        let rootfs = Rootfs {
            target: self.paths.container(&id).join("rootfs"),
            scratch: self.paths.scratch().join(&id),
        };
        match self
            .build_on(&request, namespaces, layers, rootfs.clone())
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
    ) -> Result<(Arc<Container>, Option<ResolvedUser>), ContainerError> {
        let id = &request.container_id;
        let cgroup = self.paths.cgroup(id);
        let Namespaces {
            pid_mode,
            pid,
            user,
        } = namespaces;
        let users = user
            .as_ref()
            .map(|(file, map)| (namespaces::path_of(file), *map));
        let volumes = self
            .volumes
            .prepare(request, &self.disks, users.as_ref())
            .await?;
        let launch = {
            let (request, rootfs) = (request.clone(), rootfs.clone());
            let paths = self.paths.clone();
            let work =
                move || prepare(&request, volumes, pid_mode, users, &layers, &rootfs, &paths);
            blocking::run(work).await?
        };
        let (streams, stdio) = if request.tty {
            (Streams::default(), None)
        } else {
            let (streams, stdio) = Streams::pipes(request.stdin)?;
            (streams, Some(stdio))
        };
        let users = user.iter().map(|(file, _)| file.as_fd());
        let handles: Vec<_> = pid.iter().map(AsFd::as_fd).chain(users).collect();
        let mut template = launch.spec.process().clone().unwrap_or_default();
        tracing::debug!("create: prepared");
        let launched = self
            .launcher
            .launch(Request::Create(Box::new(launch)), stdio, &handles)
            .await?;
        tracing::debug!("create: launched");
        let user = launched.user.map(|user| ResolvedUser {
            uid: user.uid,
            gid: user.gid,
            gids: user.gids,
        });
        template.set_user(spec::user(template.user(), user.as_ref())?);
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
            template,
            filter: launched.filter,
            stdin_once: request.stdin_once,
            layers: all_layers(request),
            rootfs,
            cgroup,
            waiting: tokio::sync::Mutex::new(launched.waiting),
            started_at_unix_ns: Mutex::new(None),
            execs: Mutex::default(),
        });
        monitor::first_process(Arc::clone(self), &container, launched.end, sender);
        Ok((container, user))
    }

    /// The namespaces a container joins, all of one process: a PID namespace belongs to the user
    /// namespace that it was made in.
    async fn namespaces(
        &self,
        pid_mode: PidMode,
        target: &str,
    ) -> Result<Namespaces, ContainerError> {
        let map = self.user_namespace.get().copied();
        let opening = |error| ContainerError::File {
            what: "opening the namespaces to join of",
            path: target.into(),
            error,
        };
        let (pid, user) = match (pid_mode, map) {
            (PidMode::Container | PidMode::Node, None) => (None, None),
            (PidMode::Container | PidMode::Node, Some(_)) => {
                let shared = self.shared_namespaces().await?;
                (None, Some(shared.users().map_err(opening)?))
            }
            (PidMode::Pod, _) => {
                let shared = self.shared_namespaces().await?;
                let users = map.map(|_| shared.users()).transpose();
                let pids = shared.pids().map_err(opening)?;
                (Some(pids), users.map_err(opening)?)
            }
            (PidMode::Target, _) => {
                let target = self.get(target)?;
                let exited = || ContainerError::WrongState {
                    id: target.id.clone(),
                    state: Phase::Exited.name(),
                    needed: "running, to share its PID namespace",
                };
                if target.phase() == Phase::Exited {
                    return Err(exited());
                }
                let process = target.process.pidfd().ok_or_else(exited)?;
                let open = |kind| {
                    namespaces::namespace(target.process.pid(), process, kind).map_err(|error| {
                        match target.process.is_alive() {
                            true => opening(error),
                            false => exited(),
                        }
                    })
                };
                (Some(open("pid")?), map.map(|_| open("user")).transpose()?)
            }
        };
        Ok(Namespaces {
            pid_mode,
            pid,
            user: user.zip(map),
        })
    }

    /// The namespaces that the pod's pause process keeps. It is started when it is first needed, and
    /// again when the one before has ended: a container that may do so (CAP_SYS_BOOT,
    /// CAP_SYS_PTRACE) has then ended all that shared them, and those come back in new ones.
    ///
    /// # Errors
    /// If it cannot be started.
    pub async fn shared_namespaces(&self) -> Result<Arc<SharedNamespaces>, ContainerError> {
        let mut current = self.shared_namespaces.lock().await;
        let opening = |error: io::Error| ContainerError::File {
            what: "opening",
            path: "the namespaces that the pod's containers share".into(),
            error,
        };
        if let Some(shared) = current.as_ref() {
            if !shared.has_ended().map_err(opening)? {
                return Ok(Arc::clone(shared));
            }
            tracing::warn!("the pod's pause process was ended by a container");
            *current = None;
        }
        let map = self.user_namespace.get().copied();
        let launched = self.launcher.launch(Request::Pause(map), None, &[]).await?;
        let shared = SharedNamespaces::of(launched.pid).map_err(|error| {
            kill_new(launched.pid);
            opening(error)
        })?;
        Ok(Arc::clone(current.insert(Arc::new(shared))))
    }

    /// Gives the pod a user namespace, before it has any container.
    ///
    /// # Errors
    /// If it has another one already, or the kernel refuses.
    pub async fn set_user_namespace(&self, map: IdMap) -> Result<(), ContainerError> {
        if *self.user_namespace.get_or_init(|| map) != map {
            return Err(ContainerError::Unsupported(
                "a second user namespace for the same pod",
            ));
        }
        let path = self.paths.sysfs();
        userns::mount_sysfs(&path).map_err(|error| ContainerError::File {
            what: "mounting sysfs at",
            path,
            error,
        })?;
        self.shared_namespaces().await.map(drop)
    }

    /// Removes what a container is made of: cgroup, mount, files. Continues after a failure, which
    /// is logged: the next step does not depend on it.
    pub(super) async fn clear(&self, id: &str, rootfs: Rootfs) {
        let (cgroup, directory) = (self.paths.cgroup(id), self.paths.container(id));
        let (paths, id) = (self.paths.clone(), id.to_owned());
        let work = move || {
            let steps: [(&str, Result<(), ContainerError>); 5] = [
                (
                    "cgroup",
                    cgroup::kill(&cgroup)
                        .and_then(|()| cgroup::remove(&cgroup))
                        .map_err(Into::into),
                ),
                ("mount", rootfs.unmount().map_err(Into::into)),
                ("volumes", Volumes::clear(&paths, &id).map_err(Into::into)),
                ("written files", rootfs.remove_written().map_err(Into::into)),
                ("directory", remove_directory(&directory)),
            ];
            for (what, result) in steps {
                if let Err(error) = result {
                    tracing::warn!(what, error = %Report(&error), "a container was not removed completely");
                }
            }
        };
        // Waits for the end: the same id may be used again at once.
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
    /// For POD and TARGET.
    pid: Option<OwnedFd>,
    /// The pod's user namespace, and its ids.
    user: Option<(OwnedFd, IdMap)>,
}

/// The steps that block on files and mounts.
fn prepare(
    request: &CreateContainerRequest,
    mut volumes: Prepared,
    pid_mode: PidMode,
    users: Option<(PathBuf, IdMap)>,
    layers: &[PathBuf],
    rootfs: &Rootfs,
    paths: &Paths,
) -> Result<CreateRequest, ContainerError> {
    let cgroup = paths.cgroup(&request.container_id);
    tracing::debug!("create: layers are there");
    let mut parsed = spec::parse(&request.oci_spec)?;
    let map = match &users {
        Some((file, map)) => {
            rootfs.mount_mapped(layers, file, map)?;
            Some(map)
        }
        None => {
            rootfs.mount(layers)?;
            None
        }
    };
    let implied = image::by_layer(&request.layers, &request.implied_directories);
    implied::adopt(&rootfs.target, layers, &implied, map)?;
    volumes.make_anonymous(&rootfs.target, map)?;
    volumes.apply(&mut parsed)?;
    tracing::debug!("create: root file system");
    let prepared = spec::prepare(
        parsed,
        &Decisions {
            paths,
            tty: request.tty,
            own_users: map.is_some(),
        },
    )?;
    if let Some(profile) = prepared
        .spec
        .process()
        .as_ref()
        .and_then(|process| process.apparmor_profile().as_ref())
    {
        apparmor::load(&request.apparmor_policy, profile)?;
    }
    tracing::debug!("create: spec");
    // On a host the administrator reserves them.
    if paths.host().is_none() {
        huge_pages::allow_limits(&prepared.resources)?;
    }
    cgroup::make(&cgroup)?;
    cgroup::apply(&cgroup, &prepared.resources)?;
    device_filter::attach(&cgroup, &prepared.resources)?;
    socket_filter::attach(&cgroup, &prepared.resources, paths)?;
    tracing::debug!("create: cgroup");
    Ok(CreateRequest {
        spec: prepared.spec,
        rootfs: rootfs.target.clone(),
        base: paths.base().to_owned(),
        cgroup,
        // The root of a guest's cgroups is hidden from every container.
        cgroup_namespace: !(request.host_cgroup_namespace && paths.host().is_some()),
        pids: match pid_mode {
            PidMode::Container => PidNamespace::New,
            PidMode::Node => PidNamespace::Agents,
            PidMode::Pod | PidMode::Target => PidNamespace::Joined,
        },
        users: map.copied(),
        user: request.user.clone().unwrap_or_default().encode_to_vec(),
        tty: request.tty,
    })
}
