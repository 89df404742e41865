//! Waiting for a descriptor without the runtime: in processes that have none, and on other threads.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

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
