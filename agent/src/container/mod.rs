//! The pod's containers and their states. One file per operation; the records are here.

pub mod bpf;
pub mod cgroup;
pub mod create;
pub mod delete;
pub mod device_filter;
pub mod error;
pub mod event_log;
pub mod exec;
pub mod execs;
pub mod implied;
pub mod monitor;
pub mod namespaces;
pub mod rootfs;
pub mod socket_filter;
pub mod spec;
pub mod start;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};

pub use self::error::ContainerError;
use self::event_log::EventLog;
use self::execs::{Exec, Execs};
use self::namespaces::SharedNamespaces;
use self::rootfs::Rootfs;
use crate::disk::Disks;
use crate::launcher::seccomp::Filter;
use crate::launcher::{Launcher, Waiting};
use crate::mutex::lock;
use crate::names::is_name;
use crate::paths::Paths;
use crate::process::Process;
use crate::process::exit::Exit;
use crate::userns::IdMap;
use crate::volumes::Volumes;

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Its process waits for the start.
    Created,
    /// It was started.
    Running,
    /// Its process has ended.
    Exited,
}

impl Phase {
    /// Its name, for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Exited => "exited",
        }
    }
}

/// A container that was built.
#[derive(Debug)]
pub struct Container {
    /// Its name.
    pub id: String,
    /// Its first process.
    pub process: Process,
    /// What execs start from: its own process, with its user.
    pub template: oci_spec::runtime::Process,
    /// Its seccomp filter.
    pub filter: Option<Filter>,
    /// Whether the first input stream that ends closes its input.
    pub stdin_once: bool,
    /// The serials of its layers and its image volumes'.
    pub layers: Vec<String>,
    /// Its root file system.
    pub rootfs: Rootfs,
    /// Its cgroup.
    pub cgroup: PathBuf,
    // None once it was started; a mutex that is held over the start makes a second one wait.
    waiting: tokio::sync::Mutex<Option<Waiting>>,
    started_at_unix_ns: Mutex<Option<i64>>,
    execs: Mutex<Execs>,
}

impl Container {
    /// Where it is in its life.
    pub fn phase(&self) -> Phase {
        if self.exit().is_some() {
            Phase::Exited
        } else if lock(&self.started_at_unix_ns).is_some() {
            Phase::Running
        } else {
            Phase::Created
        }
    }

    /// When it was started, CLOCK_REALTIME.
    pub fn started_at_unix_ns(&self) -> Option<i64> {
        *lock(&self.started_at_unix_ns)
    }

    /// Its end.
    pub fn exit(&self) -> Option<Exit> {
        self.process.exit.get()
    }

    /// An exec.
    ///
    /// # Errors
    /// If there is none.
    pub fn exec(&self, id: &str) -> Result<Arc<Exec>, ContainerError> {
        let exec = lock(&self.execs).get(id);
        exec.ok_or_else(|| ContainerError::ExecNotFound {
            container: self.id.clone(),
            exec: id.to_owned(),
        })
    }
}

#[derive(Debug)]
enum Slot {
    // The id is taken while the container is being built or deleted.
    Busy,
    Ready(Arc<Container>),
}

/// All containers, and what they share.
#[derive(Debug)]
pub struct Containers {
    slots: Mutex<BTreeMap<String, Slot>>,
    /// Where things are.
    pub paths: Paths,
    /// Disks.
    pub disks: Disks,
    /// Volumes.
    pub volumes: Volumes,
    /// The launcher.
    pub launcher: Launcher,
    /// What happened.
    pub events: EventLog,
    // What the pod's pause process keeps, once a container needs it.
    shared_namespaces: tokio::sync::Mutex<Option<Arc<SharedNamespaces>>>,
    // The pod's user namespace, which that process holds, too.
    user_namespace: OnceLock<IdMap>,
}

/// Either process a request can name.
#[derive(Debug, Clone)]
pub enum AnyProcess {
    /// A container's first.
    First(Arc<Container>),
    /// An exec.
    Exec(Arc<Exec>),
}

impl std::ops::Deref for AnyProcess {
    type Target = Process;

    fn deref(&self) -> &Process {
        match self {
            Self::First(container) => &container.process,
            Self::Exec(exec) => &exec.process,
        }
    }
}

/// Refuses a malformed id; it becomes part of paths.
///
/// # Errors
/// [`ContainerError::BadId`].
pub fn check_id(what: &'static str, id: &str) -> Result<(), ContainerError> {
    if is_name(id, 64) {
        Ok(())
    } else {
        Err(ContainerError::BadId {
            what,
            id: id.to_owned(),
        })
    }
}

impl Containers {
    /// None yet.
    pub fn new(paths: Paths, launcher: Launcher) -> Self {
        Self {
            slots: Mutex::default(),
            disks: Disks::new(paths.clone()),
            volumes: Volumes::new(paths.clone()),
            paths,
            launcher,
            events: EventLog::default(),
            shared_namespaces: tokio::sync::Mutex::default(),
            user_namespace: OnceLock::new(),
        }
    }

    /// A container.
    ///
    /// # Errors
    /// If it is not there, or is being built or deleted.
    pub fn get(&self, id: &str) -> Result<Arc<Container>, ContainerError> {
        match lock(&self.slots).get(id) {
            Some(Slot::Ready(container)) => Ok(Arc::clone(container)),
            Some(Slot::Busy) => Err(ContainerError::WrongState {
                id: id.to_owned(),
                state: "being built or deleted",
                needed: "built",
            }),
            None => Err(ContainerError::NotFound(id.to_owned())),
        }
    }

    /// All that are built, by id.
    pub fn all(&self) -> Vec<Arc<Container>> {
        lock(&self.slots)
            .values()
            .filter_map(|slot| match slot {
                Slot::Ready(container) => Some(Arc::clone(container)),
                Slot::Busy => None,
            })
            .collect()
    }

    /// The process a request names: an exec, or with an empty exec id the container's first.
    ///
    /// # Errors
    /// If it is not there.
    pub fn process(&self, container: &str, exec: &str) -> Result<AnyProcess, ContainerError> {
        let container = self.get(container)?;
        if exec.is_empty() {
            Ok(AnyProcess::First(container))
        } else {
            container.exec(exec).map(AnyProcess::Exec)
        }
    }
}
