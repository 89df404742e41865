//! The file system: the working directory becomes the root, and all else is gone.

use std::ffi::{CStr, CString};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use super::{JailError, check};

/// /proc/self/fd as it is.
///
/// # Errors
/// When there is no /proc.
pub fn descriptors() -> Result<OwnedFd, JailError> {
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: a zero-terminated path.
    let fd = unsafe { libc::open(c"/proc/self/fd".as_ptr(), flags) };
    let fd = check(fd, "opening /proc/self/fd")?;
    // SAFETY: it has just been opened, and is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// /proc/self/fd as a mount of its own, which is part of no file system and ends at that directory:
/// `..` does not lead to the rest of /proc.
pub(super) fn own_descriptors() -> Result<OwnedFd, JailError> {
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    let path = c"/proc/self/fd";
    // SAFETY: a zero-terminated path.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    let fd = check(i32::try_from(fd).unwrap_or(-1), "keeping /proc/self/fd")?;
    // SAFETY: it has just been opened, and is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
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
    // SAFETY: plain system calls with valid, zero-terminated strings.
    let directory = unsafe { libc::open(here.as_ptr(), libc::O_PATH | libc::O_CLOEXEC) };
    let directory = check(directory, "opening the pod's directory")?;
    let tree = open_tree(directory)?;
    move_mount(tree, directory)?;
    // SAFETY: as above.
    let result = unsafe { libc::fchdir(tree) };
    check(result, "entering the pod's directory")?;
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
    // SAFETY: as above.
    let result = unsafe { libc::syscall(libc::SYS_pivot_root, here.as_ptr(), here.as_ptr()) };
    check(i32::try_from(result).unwrap_or(-1), "changing the root")?;
    // SAFETY: as above.
    let result = unsafe { libc::umount2(here.as_ptr(), libc::MNT_DETACH) };
    check(result, "leaving the old root")?;
    // SAFETY: as above.
    let result = unsafe { libc::chdir(root.as_ptr()) };
    check(result, "entering the new root")?;
    for fd in [directory, tree] {
        // SAFETY: both were opened here and are used nowhere else.
        unsafe { libc::close(fd) };
    }
    Ok(())
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

/// With what is mounted in it: a share, as nothing else is.
fn open_tree(directory: libc::c_int) -> Result<libc::c_int, JailError> {
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    let at = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    let flags = flags | libc::c_uint::try_from(at).unwrap_or(0);
    // SAFETY: a valid descriptor and an empty, zero-terminated path.
    let tree = unsafe { libc::syscall(libc::SYS_open_tree, directory, c"".as_ptr(), flags) };
    check(
        i32::try_from(tree).unwrap_or(-1),
        "copying the pod's directory as a mount",
    )
}

fn move_mount(tree: libc::c_int, directory: libc::c_int) -> Result<(), JailError> {
    const FROM_EMPTY: libc::c_uint = 0x4;
    const TO_EMPTY: libc::c_uint = 0x40;
    // SAFETY: valid descriptors and empty, zero-terminated paths.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree,
            c"".as_ptr(),
            directory,
            c"".as_ptr(),
            FROM_EMPTY | TO_EMPTY,
        )
    };
    check(
        i32::try_from(result).unwrap_or(-1),
        "mounting the pod's directory",
    )
    .map(|_| ())
}
