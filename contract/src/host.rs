//! What the daemon says to the agent of a pod on the host, on its standard input.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A pod on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pod {
    /// The sandbox id, for messages.
    pub id: String,
    /// The directory of the agent's own things.
    pub directory: PathBuf,
    /// Where the agent serves.
    pub socket: PathBuf,
    /// Where it reports that it is ready.
    pub ready: PathBuf,
    /// Where it writes how it ended ([`crate::exit::Report`]).
    pub exit: PathBuf,
    /// The mount point of cgroup version 2.
    pub cgroup_root: PathBuf,
    /// The pod's cgroup: made, and empty.
    pub cgroup: PathBuf,
    /// Its network.
    pub network: Network,
    /// Whether it has an IPC namespace of its own.
    pub own_ipc: bool,
}

/// The pod's network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// The host's, and with it the host's name.
    Node,
    /// One that the agent makes, with a loopback interface only.
    Own,
    /// The one behind this file.
    At(PathBuf),
}
