//! The agent of a pod on the host: the configuration it is given, and its way into the pod's cgroup
//! and namespaces, before it has threads. After that it is the same agent as in a guest; what
//! differs asks [`crate::paths::Paths::host`].
//!
//! Not here: mounting files (`disk::loop_device`), what the calls do. What the agent's program is while it
//! runs: [`sealed`].

pub mod sealed;

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use bulkhead_contract::exit::{Reason, Report};
use bulkhead_contract::host;
pub use bulkhead_contract::host::Network;
use bulkhead_proto::agent::Ready;
use prost::Message;
use rustix::io::Errno;
use rustix::mount::MountPropagationFlags;
use rustix::thread::{LinkNameSpaceType, UnshareFlags};
use serde::Deserialize;
use tokio::io::AsyncWriteExt;

/// A configuration is a few paths.
const LONGEST: u64 = 64 * 1024;
/// The cgroup of the agent itself, beside those of the containers, whose names are longer.
const OWN_CGROUP: &str = "agent";
/// Without the agent the pod is lost: the OOM killer should choose something else.
const OOM_SCORE: &str = "-998";
/// The daemon listens, or has died: nothing is waited for.
const READY_DEADLINE: Duration = Duration::from_secs(10);

/// The host's own mounts, which the agent leaves at its start.
static HOST_MOUNTS: OnceLock<OwnedFd> = OnceLock::new();

/// Runs work in the host's mount namespace instead of the pod's, on a thread of its own.
///
/// # Errors
/// If the agent is not on the host, and the work's own.
pub fn among_hosts_mounts<T: Send>(
    work: impl FnOnce() -> Result<T, Errno> + Send,
) -> Result<T, Errno> {
    let mounts = HOST_MOUNTS.get().ok_or(Errno::OPNOTSUPP)?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // A thread that shares its root directory with others may not change it.
            // SAFETY: only CLONE_FILES could make descriptors invalid; FS gives this thread a root and a
            // working directory of its own and touches nothing else.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
            rustix::thread::move_into_link_name_space(
                mounts.as_fd(),
                Some(LinkNameSpaceType::Mount),
            )?;
            work()
        });
        thread.join().unwrap_or(Err(Errno::IO))
    })
}

/// Why the agent is not where it should be.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// No configuration.
    #[error("reading the pod's configuration from standard input")]
    Configuration(#[source] io::Error),
    /// The cgroup.
    #[error("{what} {}", path.display())]
    File {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// A namespace.
    #[error("{what}")]
    Namespace {
        /// What was attempted.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        error: Errno,
    },
    /// The loopback device.
    #[error("bringing up the loopback device of the pod's network namespace")]
    Loopback(#[source] io::Error),
    /// The cgroup is not below the hierarchy's root.
    #[error("the pod's cgroup {} is not below {}", cgroup.display(), root.display())]
    Outside {
        /// The cgroup.
        cgroup: PathBuf,
        /// The root.
        root: PathBuf,
    },
}

/// The pod that the agent is for, as the daemon describes it on standard input.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Pod(pub host::Pod);

impl std::ops::Deref for Pod {
    type Target = host::Pod;

    fn deref(&self) -> &host::Pod {
        &self.0
    }
}

impl Pod {
    /// Reads the configuration, to the end of standard input: a daemon that dies on the way starts
    /// nothing.
    ///
    /// # Errors
    /// If standard input does not hold one.
    pub fn read() -> Result<Self, HostError> {
        let mut text = Vec::new();
        io::stdin()
            .lock()
            .take(LONGEST)
            .read_to_end(&mut text)
            .map_err(HostError::Configuration)?;
        serde_json::from_slice(&text).map_err(|error| HostError::Configuration(error.into()))
    }

    /// The pod's cgroup as a path below the hierarchy's root.
    ///
    /// # Errors
    /// If it is not below it.
    pub fn cgroup_below_root(&self) -> Result<&Path, HostError> {
        self.cgroup
            .strip_prefix(&self.cgroup_root)
            .map_err(|_| HostError::Outside {
                cgroup: self.cgroup.clone(),
                root: self.cgroup_root.clone(),
            })
    }

    /// Enters the pod's cgroup and namespaces.
    ///
    /// # Errors
    /// The first step that fails; the process is then of no use and must end.
    pub fn enter(&self) -> Result<(), HostError> {
        self.join_cgroup()?;
        // Signals to the daemon's terminal are not the pod's.
        let _ = rustix::process::setsid();
        let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE);
        let failed = |what| move |error| HostError::Namespace { what, error };
        let mut own = UnshareFlags::NEWNS;
        if self.own_ipc {
            own |= UnshareFlags::NEWIPC;
        }
        match &self.network {
            Network::Node => {}
            Network::Own => own |= UnshareFlags::NEWUTS | UnshareFlags::NEWNET,
            Network::At(path) => {
                let file = File::open(path).map_err(|error| HostError::File {
                    what: "opening the pod's network namespace",
                    path: path.clone(),
                    error,
                })?;
                rustix::thread::move_into_link_name_space(
                    file.as_fd(),
                    Some(LinkNameSpaceType::Network),
                )
                .map_err(failed("entering the pod's network namespace"))?;
                own |= UnshareFlags::NEWUTS;
            }
        }
        let mounts = Path::new("/proc/self/ns/mnt");
        let file = File::open(mounts).map_err(|error| HostError::File {
            what: "opening the host's mount namespace",
            path: mounts.to_owned(),
            error,
        })?;
        let _ = HOST_MOUNTS.set(file.into());
        // SAFETY: only CLONE_FILES could make descriptors of this process invalid; none of these flags
        // touches them, and the process has no other thread yet.
        unsafe { rustix::thread::unshare_unsafe(own) }
            .map_err(failed("making the pod's namespaces"))?;
        // What the host mounts later appears here; what is mounted here stays here and goes with
        // the last process of the pod.
        rustix::mount::mount_change(
            "/",
            MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
        )
        .map_err(failed("separating the pod's mounts from the host's"))?;
        if self.network != Network::Node {
            crate::init::loopback::up().map_err(HostError::Loopback)?;
        }
        Ok(())
    }

    /// The agent gets a cgroup of its own below the pod's: one that has processes cannot have
    /// children with limits (cgroup-v2.rst, No Internal Process Constraint).
    fn join_cgroup(&self) -> Result<(), HostError> {
        let below = self.cgroup_below_root()?;
        let own = self.cgroup.join(OWN_CGROUP);
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |error| HostError::File { what, path, error }
        };
        match fs::create_dir(&own) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("making the agent's cgroup", &own)(error));
            }
            _ => {}
        }
        let procs = own.join("cgroup.procs");
        fs::write(&procs, "0").map_err(failed("joining the agent's cgroup by", &procs))?;
        let list = self.cgroup_root.join("cgroup.controllers");
        let controllers =
            fs::read_to_string(&list).map_err(failed("reading the host's controllers", &list))?;
        let mut level = self.cgroup_root.clone();
        enable(&level, &controllers);
        for part in below.components() {
            level.push(part);
            enable(&level, &controllers);
        }
        Ok(())
    }

    /// Reports to the daemon that the agent serves.
    ///
    /// # Errors
    /// If the daemon does not listen (any more).
    pub async fn report_ready(&self, ready: &Ready) -> io::Result<()> {
        let report = async {
            let mut stream = tokio::net::UnixStream::connect(&self.ready).await?;
            stream
                .write_all(&ready.encode_length_delimited_to_vec())
                .await?;
            stream.shutdown().await
        };
        tokio::time::timeout(READY_DEADLINE, report)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Writes how the agent ends. Whoever reads it sees all or nothing.
    pub fn write_exit(&self, reason: Reason, message: &str) {
        let part = self.exit.with_extension("part");
        let write = || -> io::Result<()> {
            let report = Report {
                reason,
                message: message.to_owned(),
                console_tail: String::new(),
            };
            fs::write(&part, serde_json::to_vec(&report)?)?;
            fs::rename(&part, &self.exit)
        };
        if let Err(error) = write() {
            // The daemon then reports that the agent was killed.
            tracing::warn!(%error, "the reason of the agent's end could not be written");
        }
    }
}

/// Lets the cgroups below a level have limits. Not fatal: a limit whose controller is missing fails
/// when it is set, and names it.
fn enable(level: &Path, controllers: &str) {
    for name in controllers.split_whitespace() {
        let _ = fs::write(level.join("cgroup.subtree_control"), format!("+{name}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_configurations_are_read() {
        let text = include_str!("../../../contract/tests/golden/0.1/host.json");
        let pods: Vec<Pod> = serde_json::from_str(text).unwrap();
        let [at, node, _own] = pods.as_slice() else {
            panic!("{pods:?}");
        };
        assert_eq!(at.network, Network::At("/r/netns/a".into()));
        assert_eq!(at.cgroup_below_root().unwrap(), Path::new("k/p"));
        assert_eq!(node.network, Network::Node);
        let mut outside = node.clone();
        outside.0.cgroup = "/k/p".into();
        assert!(matches!(
            outside.cgroup_below_root(),
            Err(HostError::Outside { .. })
        ));
        assert!(serde_json::from_str::<Vec<Pod>>(&text.replace("\"id\"", "\"di\"")).is_err());
    }
}
