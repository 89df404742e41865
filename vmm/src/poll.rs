//! poll(2) with a deadline.

use std::io;
use std::os::fd::RawFd;
use std::time::Instant;

/// An entry that waits for `fd` to become readable. A negative `fd` never does.
#[must_use]
pub fn readable(fd: RawFd) -> libc::pollfd {
    libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    }
}

/// Waits until one of `fds` is ready, `until` has come, or a signal; says how many are ready. Their
/// `revents` say which.
///
/// # Errors
/// The system's.
pub fn poll(fds: &mut [libc::pollfd], until: Option<Instant>) -> io::Result<usize> {
    let timeout = until.map_or(-1, |until| {
        let left = until.saturating_duration_since(Instant::now());
        // Rounded up, so that the deadline has passed afterwards.
        let rounded = left.as_nanos().div_ceil(1_000_000);
        libc::c_int::try_from(rounded).unwrap_or(libc::c_int::MAX)
    });
    for fd in fds.iter_mut() {
        fd.revents = 0;
    }
    let count = libc::nfds_t::try_from(fds.len()).unwrap_or(0);
    // SAFETY: the slice is the caller's alone and has `count` entries; the kernel writes to their
    // `revents` during the call.
    let n = unsafe { libc::poll(fds.as_mut_ptr(), count, timeout) };
    match usize::try_from(n) {
        Ok(ready) => Ok(ready),
        Err(_) => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            error => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_ready_is_found_and_a_deadline_ends_the_wait() {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut fds = [readable(-1), readable(reader.as_raw_fd())];
        let soon = Instant::now() + Duration::from_millis(3);
        assert_eq!(poll(&mut fds, Some(soon)).unwrap(), 0);
        assert!(Instant::now() >= soon);
        drop(writer);
        assert_eq!(poll(&mut fds, None).unwrap(), 1);
        assert!(fds[0].revents == 0 && fds[1].revents != 0);
    }
}
