//! A null device of the agent's own, for processes without input. The node's or the guest's is not
//! handed out: whoever has it open has its inode, whose mode and owner root of a container can
//! change for everyone (fchmod(2) on standard input), and its file system, through
//! open_by_handle_at(2).

use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};

use crate::mount_attr::{self, Change};

const NAME: &str = "null";

/// Opens it for reading.
///
/// # Errors
/// If the kernel refuses.
pub fn open() -> Result<OwnedFd, Errno> {
    static DIRECTORY: OnceLock<OwnedFd> = OnceLock::new();
    let directory = match DIRECTORY.get() {
        Some(directory) => directory,
        None => {
            let made = make()?;
            DIRECTORY.get_or_init(|| made)
        }
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::openat(directory, NAME, flags, Mode::empty())
}

/// A file system with nothing else in it, mounted nowhere, and read-only from then on.
fn make() -> Result<OwnedFd, Errno> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "size", "4k")?;
    fsconfig_set_string(&context, "nr_inodes", "2")?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let mode = Mode::from_raw_mode(0o666);
    let device = rustix::fs::makedev(1, 3);
    rustix::fs::mknodat(&mount, NAME, FileType::CharacterDevice, mode, device)?;
    // Independent of the umask.
    rustix::fs::chmodat(&mount, NAME, mode, rustix::fs::AtFlags::empty())?;
    let change = Change {
        set: mount_attr::RDONLY,
        ..Change::default()
    };
    mount_attr::change(&mount, change)?;
    Ok(mount)
}
