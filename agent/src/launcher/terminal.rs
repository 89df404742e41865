//! Terminals of containers: taking the master libcontainer hands out, and opening one for an exec
//! inside the container, whose /dev is not to be trusted.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::pty::OpenptFlags;

use super::message;

/// What statfs says of a devpts (linux/magic.h).
const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;
/// Device number of the multiplexer, the same in every devpts instance.
const PTMX: (u32, u32) = (5, 2);
const CONSOLE_DEADLINE: Duration = Duration::from_secs(5);

/// Waits until a descriptor can be read, at most for `deadline`.
///
/// # Errors
/// TimedOut, or the kernel's answer.
pub fn wait_readable(fd: impl AsFd, deadline: Duration) -> io::Result<()> {
    let timeout = Timespec::try_from(deadline).map_err(|_| io::ErrorKind::InvalidInput)?;
    loop {
        let mut polled = [PollFd::new(&fd, PollFlags::IN)];
        match rustix::event::poll(&mut polled, Some(&timeout)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The master libcontainer sends once the container's process has its terminal.
///
/// # Errors
/// When none comes.
pub fn accept_master(listener: &UnixListener) -> io::Result<OwnedFd> {
    wait_readable(listener, CONSOLE_DEADLINE)?;
    let (stream, _) = listener.accept()?;
    wait_readable(&stream, CONSOLE_DEADLINE)?;
    let mut name = [0; 256];
    let (_, fds) = message::receive(&stream, &mut name)?;
    fds.into_iter()
        .next()
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// A new terminal in the container that was entered: master and slave, owned by the process's
/// user.
///
/// # Errors
/// When the container has no devpts at /dev/pts.
pub fn open(uid: u32) -> io::Result<(OwnedFd, OwnedFd)> {
    // Not /dev/ptmx: the image or a process of the container may have put anything there.
    let master = rustix::fs::open(
        c"/dev/pts/ptmx",
        OFlags::RDWR | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let stat = rustix::fs::fstat(&master)?;
    let device = (
        rustix::fs::major(stat.st_rdev),
        rustix::fs::minor(stat.st_rdev),
    );
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice
        || device != PTMX
        || rustix::fs::fstatfs(&master)?.f_type != DEVPTS_SUPER_MAGIC
    {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "/dev/pts/ptmx in the container is not a terminal multiplexer",
        ));
    }
    rustix::pty::unlockpt(&master)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(
        &master,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )?;
    rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(uid)), None)?;
    Ok((master, slave))
}
