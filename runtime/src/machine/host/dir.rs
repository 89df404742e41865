//! The directory of a pod's agent on the host. Nobody lists it, and nobody but root connects to the
//! sockets in it.

use std::path::{Path, PathBuf};

/// The files of a pod's agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDir {
    root: PathBuf,
}

impl HostDir {
    /// Of the pod whose run-time directory this is.
    pub fn of_pod(pod_dir: &Path) -> Self {
        Self {
            root: pod_dir.join("host"),
        }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the agent serves.
    pub fn socket(&self) -> PathBuf {
        self.root.join("agent.sock")
    }

    /// Where the daemon listens for the agent's report.
    pub fn ready(&self) -> PathBuf {
        self.root.join("ready.sock")
    }

    /// What the agent says.
    pub fn log(&self) -> PathBuf {
        self.root.join("agent.log")
    }

    /// How it ended.
    pub fn exit(&self) -> PathBuf {
        self.root.join("exit.json")
    }
}
