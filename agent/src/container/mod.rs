//! The pod's containers: who there is, what state they are in. One file per thing that can be done
//! to them; the records are here.

pub mod bpf;
pub mod cgroup;
pub mod create;
pub mod delete;
pub mod device_filter;
pub mod events;
pub mod exec;
pub mod holder;
pub mod implied;
pub mod rootfs;
pub mod socket_filter;
pub mod spec;
pub mod start;
pub mod watch;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use self::events::Events;
use self::exec::{Exec, Execs};
use self::holder::Holder;
use self::rootfs::Rootfs;
use crate::disk::Disks;
use crate::huge_pages::HugePagesError;
use crate::launcher::seccomp::Filter;
use crate::launcher::{Launcher, Waiting};
use crate::paths::Paths;
use crate::process::Process;
use crate::process::exit::Exit;
use crate::userns::IdMap;
use crate::volumes::Volumes;

/// What can go wrong with containers.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// An id that cannot be one.
    #[error("{what} id {id:?} is not 1 to 64 characters of A-Z a-z 0-9 . _ -")]
    BadId {
        /// Of what.
        what: &'static str,
        /// The id.
        id: String,
    },
    /// Nobody has that id.
    #[error("container {0} is not there")]
    NotFound(String),
    /// Nobody has that exec id.
    #[error("container {container} has no exec {exec}")]
    ExecNotFound {
        /// The container.
        container: String,
        /// The exec.
        exec: String,
    },
    /// Somebody has that id.
    #[error("container {0} is there already; delete it first")]
    Exists(String),
    /// Somebody has that exec id.
    #[error("container {container} has an exec {exec} already; delete it first")]
    ExecExists {
        /// The container.
        container: String,
        /// The exec.
        exec: String,
    },
    /// Not in this state.
    #[error("container {id} is {state}; this needs it to be {needed}")]
    WrongState {
        /// The container.
        id: String,
        /// What it is.
        state: &'static str,
        /// What it should be.
        needed: &'static str,
    },
    /// A field that is not there yet.
    #[error("{0} is not supported by this agent")]
    Unsupported(&'static str),
    /// The spec cannot be carried out.
    #[error(transparent)]
    Spec(#[from] spec::SpecError),
    /// A layer.
    #[error(transparent)]
    Disk(#[from] crate::disk::DiskError),
    /// The root file system.
    #[error(transparent)]
    Rootfs(#[from] rootfs::RootfsError),
    /// The AppArmor profile.
    #[error(transparent)]
    AppArmor(#[from] crate::apparmor::AppArmorError),
    /// The user namespace.
    #[error(transparent)]
    Userns(#[from] crate::userns::UsernsError),
    /// A volume.
    #[error(transparent)]
    Volume(#[from] crate::volumes::VolumeError),
    /// The cgroup.
    #[error(transparent)]
    Cgroup(#[from] cgroup::CgroupError),
    /// Huge pages.
    #[error(transparent)]
    HugePages(#[from] HugePagesError),
    /// The device filter.
    #[error(transparent)]
    Devices(#[from] device_filter::DeviceFilterError),
    /// The socket filter.
    #[error(transparent)]
    Sockets(#[from] bpf::BpfError),
    /// The process could not be made.
    #[error(transparent)]
    Launch(#[from] crate::launcher::LaunchError),
    /// The payload could not be executed.
    #[error(transparent)]
    Payload(#[from] crate::launcher::message::Failure),
    /// Its streams or signals.
    #[error(transparent)]
    Process(#[from] crate::process::ProcessError),
    /// A file of the container's directory.
    #[error("{what} {} failed: {error}", path.display())]
    File {
        /// What was attempted.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It did not happen in time.
    #[error("container {id}: {what} took longer than {seconds} s")]
    Deadline {
        /// The container.
        id: String,
        /// What.
        what: &'static str,
        /// How long.
        seconds: u64,
    },
    /// The blocking thread went away.
    #[error("the thread that worked on the container ended early; the agent is shutting down")]
    Cancelled,
}

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
    /// In words.
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The agent's critical sections do not panic halfway through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// The ids of its execs that were not deleted, in order.
    pub fn exec_ids(&self) -> Vec<String> {
        lock(&self.execs).ids()
    }

    /// An exec.
    ///
    /// # Errors
    /// When there is none.
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

/// What all containers share, and who there is.
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
    pub events: Events,
    // The first process of the pod's shared PID namespace, once a container wants it.
    pid_holder: tokio::sync::Mutex<Option<Arc<Holder>>>,
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

/// Refuses what cannot be an id; it becomes part of paths.
///
/// # Errors
/// [`ContainerError::BadId`].
pub fn check_id(what: &'static str, id: &str) -> Result<(), ContainerError> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if (1..=64).contains(&id.len()) && id.chars().all(good) && !id.chars().all(|c| c == '.') {
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
            events: Events::default(),
            pid_holder: tokio::sync::Mutex::default(),
            user_namespace: OnceLock::new(),
        }
    }

    /// A container.
    ///
    /// # Errors
    /// When it is not there, or is being built or deleted.
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
    /// When it is not there.
    pub fn process(&self, container: &str, exec: &str) -> Result<AnyProcess, ContainerError> {
        let container = self.get(container)?;
        if exec.is_empty() {
            Ok(AnyProcess::First(container))
        } else {
            container.exec(exec).map(AnyProcess::Exec)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_could_be_paths_are_refused() {
        for bad in ["", ".", "..", "a/b", "a\0", &"x".repeat(65)] {
            assert!(check_id("container", bad).is_err(), "{bad:?}");
        }
        assert!(check_id("container", "0123456789abcdef0123456789abcdef").is_ok());
    }
}
