//! Volumes: from CRI's mounts and devices to what a container gets.
//!
//! [`validate`] refuses what makes no sense, [`inspect`] looks at the sources and decides what each
//! becomes ([`Kind`]), [`add_anonymous`] adds what the image asks for; all serve any handler. For a pod in a virtual machine [`pod_volumes`] then carries
//! the plan out: mounts in the pod's [`share`], copies that follow the host ([`snapshot`],
//! `watch`), volumes in memory that follow its size (`size`), disks, sockets.
//!
//! Not here: what the guest does with it (the agent), images' layers (the images crate), the OCI spec (`oci`).

mod anonymous;
mod bridge;
mod digest;
mod error;
mod followed;
mod inspect;
pub mod mountinfo;
mod plan;
pub mod pod_volumes;
mod record;
pub mod share;
mod size;
pub mod snapshot;
mod token;
pub mod validate;
mod watch;

pub use anonymous::add as add_anonymous;
pub use error::VolumeError;
pub use followed::Followed;
pub use inspect::{PlanContext, inspect};
pub use plan::{BlockDisk, GuestDevice, Image, Kind, Memory, Plan, Source, Volume};
pub use record::VolumeRecord;
pub use validate::Handler;

/// Runs work with the file system off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| VolumeError::Ending)?
}
