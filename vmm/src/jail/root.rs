//! The file system: the working directory becomes the root, and all else is gone.

use std::ffi::CStr;
use std::ptr;

use super::{JailError, check};

/// Makes the working directory the only file system of this process. It must be in mount, user
/// and PID namespaces of its own.
pub(super) fn enter() -> Result<(), JailError> {
    let (here, root) = (c".", c"/");
    // Nothing that is mounted here shows up outside, nor the other way round.
    mount(
        None,
        root,
        libc::MS_REC | libc::MS_PRIVATE,
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

fn open_tree(directory: libc::c_int) -> Result<libc::c_int, JailError> {
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    let flags = flags | libc::c_uint::try_from(libc::AT_EMPTY_PATH).unwrap_or(0);
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
