//! Terminals of containers, opened inside of them: their /dev is not to be trusted.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::pty::OpenptFlags;

/// What statfs says of a devpts (linux/magic.h).
const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;
/// Device number of the multiplexer, the same in every devpts instance.
const PTMX: (u32, u32) = (5, 2);

/// Refuses what is not the master of a terminal.
///
/// # Errors
/// InvalidData.
pub fn check_master(master: &OwnedFd) -> io::Result<()> {
    let stat = rustix::fs::fstat(master)?;
    let device = (
        rustix::fs::major(stat.st_rdev),
        rustix::fs::minor(stat.st_rdev),
    );
    if FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && device == PTMX
        && rustix::fs::fstatfs(master)?.f_type == DEVPTS_SUPER_MAGIC
    {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        "/dev/pts/ptmx in the container is not a terminal multiplexer",
    ))
}

/// A new terminal in the container that was entered: master and slave, owned by the process's
/// user.
///
/// # Errors
/// If the container has no devpts at /dev/pts.
pub fn open(uid: u32) -> io::Result<(OwnedFd, OwnedFd)> {
    // Not /dev/ptmx: the image or a process of the container may have put anything there.
    let master = rustix::fs::open(
        c"/dev/pts/ptmx",
        OFlags::RDWR | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    check_master(&master)?;
    rustix::pty::unlockpt(&master)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(
        &master,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )?;
    rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(uid)), None)?;
    Ok((master, slave))
}
