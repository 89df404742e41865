//! From CRI to OCI: what a container's config, its image and its pod say becomes the one runtime
//! spec the agent carries out; what cannot be carried out is refused, with an error that names it.
//!
//! Pure: no guest, no image store and no records here. What is read are localhost profiles
//! ([`seccomp::read_localhost`], [`apparmor::NodeProfiles::policy`]), by the caller.

pub mod apparmor;
pub mod capabilities;
mod error;
pub mod host_devices;
pub mod mounts;
pub mod process;
pub mod resources;
pub mod seccomp;
pub mod signal;
mod spec;
pub mod userns;

pub use error::OciError;
pub use process::ImageProcess;
pub use spec::{Input, Kernel, Plan, build};
