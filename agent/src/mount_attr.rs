//! mount_setattr(2), which rustix does not have: the attributes of a mount by its descriptor.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// linux/mount.h: struct mount_attr.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct Raw {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// linux/mount.h: MOUNT_ATTR_*.
pub const RDONLY: u64 = 0x0000_0001;
/// Set-id bits do nothing.
pub const NOSUID: u64 = 0x0000_0002;
/// Device nodes do nothing.
pub const NODEV: u64 = 0x0000_0004;
/// Programs cannot be executed.
pub const NOEXEC: u64 = 0x0000_0008;
/// The bits that say when access times are written.
pub const ATIME: u64 = 0x0000_0070;
/// Access times as relatime has it: no bit of [`ATIME`].
pub const RELATIME: u64 = 0;
/// Never.
pub const NOATIME: u64 = 0x0000_0010;
/// Always.
pub const STRICTATIME: u64 = 0x0000_0020;
/// Not of directories.
pub const NODIRATIME: u64 = 0x0000_0080;
/// Owners are seen through a user namespace.
const IDMAP: u64 = 0x0010_0000;
/// Symbolic links are not followed.
pub const NOSYMFOLLOW: u64 = 0x0020_0000;

/// A change of attributes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Those that are set.
    pub set: u64,
    /// Those that are taken away first.
    pub clear: u64,
    /// MS_SHARED, MS_SLAVE, MS_PRIVATE or MS_UNBINDABLE; 0 leaves it.
    pub propagation: u64,
    /// On the mounts below as well.
    pub recursive: bool,
}

/// Changes the mount that `mount` is the root of.
///
/// # Errors
/// If the kernel refuses: EPERM for an attribute that is locked, EINVAL if the descriptor is not
/// the root of a mount.
pub fn change(mount: impl AsFd, change: Change) -> Result<(), Errno> {
    set(
        mount.as_fd(),
        change.recursive,
        Raw {
            attr_set: change.set,
            attr_clr: change.clear,
            propagation: change.propagation,
            userns_fd: 0,
        },
    )
}

/// Shows the owners of a detached mount's files through a user namespace.
///
/// # Errors
/// If the kernel refuses: EINVAL for a file system that cannot do this.
pub fn map_owners(mount: impl AsFd, namespace: impl AsFd) -> Result<(), Errno> {
    let userns_fd = u64::try_from(namespace.as_fd().as_raw_fd()).map_err(|_| Errno::BADF)?;
    set(
        mount.as_fd(),
        false,
        Raw {
            attr_set: IDMAP,
            userns_fd,
            ..Raw::default()
        },
    )
}

fn set(mount: BorrowedFd<'_>, recursive: bool, attributes: Raw) -> Result<(), Errno> {
    // linux/fcntl.h
    const AT_RECURSIVE: libc::c_int = 0x8000;
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= AT_RECURSIVE;
    }
    // SAFETY: the path is an empty C string, the attributes are of the size given, and both live
    // over the call, which only reads them.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<Raw>(),
        )
    };
    if done == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    Err(Errno::from_io_error(&error).unwrap_or(Errno::INVAL))
}
