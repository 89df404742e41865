//! A real Kubernetes around Bulkhead: a control plane on the machine, a kubelet and a daemon in a test
//! host, and cases that say to it by `kubectl` what users say. `tests/kube.sh` gives all that
//! namespaces of its own, in which addresses and ports are free and nothing outlives the run.
//!
//! [`control_plane`] and [`node`] start the two sides, [`test_host`] boots the second; [`cluster`] is what
//! cases talk to; [`runner`] runs them, several at once.

pub mod case;
pub mod cases;
pub mod certificates;
pub mod cluster;
pub mod control_plane;
mod manifests;
pub mod node;
pub mod part;
pub mod runner;
pub mod test_host;

use std::{env, path::PathBuf};

use crate::Failure;

/// How the test host calls the machine; the machine has the address, too.
pub const MACHINE: &str = "10.0.2.2";
/// Where the API server listens.
pub const API_PORT: u16 = 6443;
/// Where a kubelet listens.
pub const KUBELET_PORT: u16 = 10250;
/// Where the registry listens, as nodes call it.
pub const REGISTRY: &str = "10.0.2.2:5000";
/// The cluster's DNS service.
pub const CLUSTER_DNS: &str = "10.96.0.10";
/// Persistent volumes of nodes lie below this directory.
pub const VOLUMES: &str = "/var/lib/bulkhead/local-volumes";

/// The directory that the environment variable `name` holds.
///
/// # Errors
/// If there is none.
pub fn directory(name: &str) -> Result<PathBuf, Failure> {
    let dir = env::var_os(name).map(PathBuf::from);
    let dir = dir.filter(|dir| dir.is_dir());
    dir.ok_or_else(|| format!("{name} names no directory: run the tests by `make test`").into())
}
