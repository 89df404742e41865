//! Descriptors that tasks wait for. Threads and processes without the runtime use `poll`.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor with the runtime; the caller has made it non-blocking if it is read or
/// written.
///
/// # Errors
/// If the guest is out of memory, or the descriptor is a file that cannot be waited for.
pub fn watch(fd: impl Into<OwnedFd>, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    let fd = fd.into();
    // SAFETY: an OwnedFd keeps its descriptor open for as long as it lives, and always gives the
    // same one.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}

/// Like [`watch`] for a descriptor that is read, which becomes non-blocking.
///
/// # Errors
/// As for [`watch`].
pub fn readable(fd: impl Into<OwnedFd>) -> io::Result<AsyncFd<OwnedFd>> {
    let fd = fd.into();
    rustix::io::ioctl_fionbio(&fd, true)?;
    watch(fd, Interest::READABLE)
}
