//! Mounting a disk's file system, and unmounting it. Blocks.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::error::DiskError;

/// How a disk is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filesystem {
    /// An image layer.
    Erofs,
    /// The scratch disk, writable.
    Ext4,
}

impl Filesystem {
    /// The kernel's name for it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Erofs => "erofs",
            Self::Ext4 => "ext4",
        }
    }

    /// The flags it is mounted with.
    pub(super) fn flags(self) -> MountFlags {
        match self {
            Self::Erofs => MountFlags::RDONLY | MountFlags::NOATIME,
            Self::Ext4 => MountFlags::NOATIME,
        }
    }
}

/// Mounts a disk or a part of one at a place that is made for it.
///
/// # Errors
/// [`DiskError::Mount`].
pub(super) fn mount_device(
    serial: &str,
    node: &Path,
    filesystem: Filesystem,
    target: PathBuf,
) -> Result<(), DiskError> {
    mount_node(node, filesystem, &target).map_err(|error| DiskError::Mount {
        serial: serial.to_owned(),
        device: node.display().to_string(),
        filesystem: filesystem.name(),
        target,
        error,
    })
}

/// Mounts a device node at a place that is made for it.
///
/// # Errors
/// If the kernel refuses.
pub(super) fn mount_node(node: &Path, filesystem: Filesystem, target: &Path) -> io::Result<()> {
    std::fs::create_dir_all(target)?;
    let (kind, flags) = (filesystem.name(), filesystem.flags());
    rustix::mount::mount(node, target, kind, flags, None).map_err(io::Error::from)
}

/// Unmounts a disk, if it is mounted, and removes the place.
///
/// # Errors
/// [`DiskError::Release`]: EBUSY while something in it is open.
pub(super) fn unmount(serial: &str, target: &Path) -> Result<(), DiskError> {
    let failed = |error: io::Error| DiskError::Release {
        serial: serial.to_owned(),
        what: "unmounting",
        error,
    };
    match rustix::mount::unmount(target, UnmountFlags::empty()) {
        // EINVAL: not mounted.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
        Err(error) => return Err(failed(error.into())),
    }
    match std::fs::remove_dir(target) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    }
}
