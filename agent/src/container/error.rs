//! What can go wrong with containers.

use std::path::PathBuf;

use super::{bpf, cgroup, device_filter, rootfs, spec};
use crate::apparmor::AppArmorError;
use crate::blocking::EndedEarly;
use crate::disk::DiskError;
use crate::huge_pages::HugePagesError;
use crate::launcher::LaunchError;
use crate::launcher::message::Failure;
use crate::process::ProcessError;
use crate::userns::UsernsError;
use crate::volumes::VolumeError;

/// What can go wrong with containers.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// A malformed id.
    #[error("{what} id {id:?} is not 1 to 64 characters of A-Z a-z 0-9 . _ -")]
    BadId {
        /// Of what.
        what: &'static str,
        /// The id.
        id: String,
    },
    /// There is no such container.
    #[error("container {0} does not exist")]
    NotFound(String),
    /// There is no such exec.
    #[error("container {container} has no exec {exec}")]
    ExecNotFound {
        /// The container.
        container: String,
        /// The exec.
        exec: String,
    },
    /// The id is taken.
    #[error("container {0} exists already; delete it first")]
    Exists(String),
    /// The exec id is taken.
    #[error("container {container} has an exec {exec} already; delete it first")]
    ExecExists {
        /// The container.
        container: String,
        /// The exec.
        exec: String,
    },
    /// Not in this state.
    #[error("container {id} is {state}; it must be {needed}")]
    WrongState {
        /// The container.
        id: String,
        /// What it is.
        state: &'static str,
        /// What it should be.
        needed: &'static str,
    },
    /// A field that this agent does not support.
    #[error("{0} is not supported by this agent")]
    Unsupported(&'static str),
    /// The spec cannot be carried out.
    #[error(transparent)]
    Spec(#[from] spec::SpecError),
    /// A layer.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The root file system.
    #[error(transparent)]
    Rootfs(#[from] rootfs::RootfsError),
    /// The AppArmor profile.
    #[error(transparent)]
    AppArmor(#[from] AppArmorError),
    /// The user namespace.
    #[error(transparent)]
    Userns(#[from] UsernsError),
    /// A volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
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
    Launch(#[from] LaunchError),
    /// The payload could not be executed.
    #[error(transparent)]
    Payload(#[from] Failure),
    /// Its streams or signals.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A file of the container's directory.
    #[error("{what} {}", path.display())]
    File {
        /// What was attempted.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
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
    /// Blocking work did not return.
    #[error(transparent)]
    EndedEarly(#[from] EndedEarly),
}
