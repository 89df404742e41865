//! Pods on the host from the daemon's side: the directory of a pod's agent, starting that agent, and
//! the AppArmor profile that its containers have by default. Not here: what the agent does
//! (`agent/src/host`), and which pods come here (`sandbox`).

mod dir;
mod error;
mod host_machine;
mod profile;
mod spawn;

pub use dir::HostDir;
pub use error::HostError;
pub use host_machine::HostMachine;
pub use profile::{DefaultProfile, ProfileError, parser as apparmor_parser};
pub use spawn::{make_dir, spawn};
