//! What can go wrong with a volume.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

use super::tree::TreeError;
use crate::blocking::EndedEarly;
use crate::container::rootfs::RootfsError;
use crate::disk::DiskError;
use crate::huge_pages::HugePagesError;

/// The virtio-fs device's tag.
pub(super) const TAG: &str = "bulkhead";

/// What can go wrong with a volume.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// An invalid field of the request.
    #[error("{field} {value:?}: {allowed}")]
    Invalid {
        /// Which field.
        field: &'static str,
        /// What it has.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// The guest has no virtio-fs device.
    #[error(
        "mounting the pod's shared directory (virtio-fs {TAG:?}; was the VM started without its file \
         system device?)"
    )]
    Share {
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
    /// Huge pages.
    #[error(transparent)]
    HugePages(#[from] HugePagesError),
    /// A part of a volume that is not there.
    #[error("mounting {part:?} of {what}")]
    Part {
        /// Of what.
        what: String,
        /// Which part.
        part: String,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// A volume in memory that no container has.
    #[error("no container of the pod has the volume {name:?} in memory")]
    NoMemory {
        /// Which.
        name: String,
    },
    /// A file or a mount.
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
    /// An anonymous volume.
    #[error(transparent)]
    Anonymous(#[from] AnonymousError),
    /// A disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// An image's files.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// Blocking work did not return.
    #[error(transparent)]
    EndedEarly(#[from] EndedEarly),
}

/// Why an anonymous volume cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum AnonymousError {
    /// Something else is there.
    #[error(
        "the image asks for a volume on {}: the image has no directory there, but a file at that \
         path or above it", destination.display()
    )]
    NoDirectory {
        /// Where.
        destination: PathBuf,
    },
    /// The image's directory cannot be found.
    #[error("the image asks for a volume on {}: looking that up in the image", destination.display())]
    Resolve {
        /// Where.
        destination: PathBuf,
        /// Why.
        #[source]
        error: Errno,
    },
    /// The image's content cannot be copied.
    #[error("copying what the image has at {} into its volume", destination.display())]
    Copy {
        /// Where.
        destination: PathBuf,
        /// Why.
        #[source]
        error: TreeError,
    },
    /// The scratch disk is full.
    #[error(
        "copying what the image has at {} into its volume: the pod's scratch disk is full",
        destination.display()
    )]
    Full {
        /// Where.
        destination: PathBuf,
        /// At what.
        #[source]
        error: TreeError,
    },
}
