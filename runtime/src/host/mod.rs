//! Pods on the host from the daemon's side: the directory of a pod's agent, and starting that
//! agent. Not here: what the agent does (`agent/src/host.rs`), and which pods come here
//! (`sandbox`).

mod dir;
mod error;
mod spawn;

pub use dir::HostDir;
pub use error::HostError;
pub use spawn::{Network, Plan, make_dir, spawn};
