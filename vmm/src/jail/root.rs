//! The file system: the working directory becomes the root, and all else is gone.

use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};
use rustix::process::{chdir, fchdir, pivot_root};

use super::error::{Attempted, JailError, check};

/// /proc/self/fd as it is.
///
/// # Errors
/// When there is no /proc.
pub fn descriptors() -> Result<OwnedFd, JailError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(c"/proc/self/fd", flags, Mode::empty()).or_failed("opening /proc/self/fd")
}

/// /proc/self/fd as a mount of its own, which is part of no file system and ends at that directory:
/// `..` does not lead to the rest of /proc.
pub(super) fn own_descriptors() -> Result<OwnedFd, JailError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, c"/proc/self/fd", flags).or_failed("keeping /proc/self/fd")
}

/// Makes the working directory the only file system of this process, and of what is mounted in it
/// the `share` alone. It must be in mount, user and PID namespaces of its own.
pub(super) fn enter(share: Option<&Path>) -> Result<(), JailError> {
    let (here, root) = (c".", c"/");
    // Nothing that is mounted here shows up outside; with a share, what is mounted on it outside
    // shows up here, today and later.
    let propagation = match share {
        None => libc::MS_PRIVATE,
        Some(_) => libc::MS_SLAVE,
    };
    mount(
        None,
        root,
        libc::MS_REC | propagation,
        "making mounts private",
    )?;
    // pivot_root wants a mount. A copy of the directory as a mount of its own is put over it
    // (open_tree takes the directory by descriptor, so that no path above it must be searched).
    let directory = rustix::fs::open(here, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .or_failed("opening the pod's directory")?;
    // With what is mounted in it: a share, as nothing else is.
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let tree =
        open_tree(&directory, c"", flags).or_failed("copying the pod's directory as a mount")?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&tree, c"", &directory, c"", flags).or_failed("mounting the pod's directory")?;
    fchdir(&tree).or_failed("entering the pod's directory")?;
    // Nothing there is run or is a device; the pod's files are data.
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    mount(
        None,
        here,
        libc::MS_REMOUNT | libc::MS_BIND | flags,
        "restricting the pod's directory",
    )?;
    if let Some(share) = share {
        mount(None, here, libc::MS_PRIVATE, "making the root private")?;
        restrict_share(share)?;
    }
    // The old root lands on top of the new one, and is then taken off (pivot_root(2), "NOTES").
    pivot_root(here, here).or_failed("changing the root")?;
    unmount(here, UnmountFlags::DETACH).or_failed("leaving the old root")?;
    chdir(root).or_failed("entering the new root")
}

fn mount(
    source: Option<&CStr>,
    target: &CStr,
    flags: libc::c_ulong,
    attempted: &str,
) -> Result<(), JailError> {
    let source = source.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: strings are zero-terminated or null where mount(2) allows it.
    let result = unsafe { libc::mount(source, target.as_ptr(), ptr::null(), flags, ptr::null()) };
    check(result, attempted).map(|_| ())
}

/// What is mounted on the share keeps its own flags, as a read-only volume does. The share itself
/// is the daemon's: nobody makes anything between the volumes.
fn restrict_share(share: &Path) -> Result<(), JailError> {
    let name = CString::new(share.as_os_str().as_bytes());
    let name = name.unwrap_or_default();
    let attempted = format!(
        "restricting the share {} (it must be a mount of its own)",
        share.display()
    );
    let safe = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    set_attributes(&name, safe, libc::AT_RECURSIVE, &attempted)?;
    let alone = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOEXEC;
    set_attributes(&name, alone, 0, &attempted)
}

fn set_attributes(
    path: &CStr,
    set: u64,
    flags: libc::c_int,
    attempted: &str,
) -> Result<(), JailError> {
    // SAFETY: plain numbers, for which zeroes are a valid value.
    let mut attributes: libc::mount_attr = unsafe { std::mem::zeroed() };
    attributes.attr_set = set;
    // SAFETY: a zero-terminated path, and a structure that is as long as said.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            flags | libc::AT_SYMLINK_NOFOLLOW,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    check(i32::try_from(result).unwrap_or(-1), attempted).map(|_| ())
}
