//! Descriptors: only the named ones stay.

use std::collections::BTreeSet;
use std::os::fd::RawFd;

use super::error::{JailError, check};

/// Closes every descriptor but the standard ones and `keep`.
///
/// # Errors
/// When the kernel cannot (before Linux 5.9).
pub fn close_all_but(keep: &[RawFd]) -> Result<(), JailError> {
    let keep: BTreeSet<libc::c_uint> = [0, 1, 2]
        .iter()
        .chain(keep)
        .filter_map(|fd| libc::c_uint::try_from(*fd).ok())
        .collect();
    let mut next: libc::c_uint = 0;
    for fd in keep {
        if fd > next {
            close_range(next, fd - 1)?;
        }
        next = fd.saturating_add(1);
    }
    close_range(next, libc::c_uint::MAX)
}

fn close_range(first: libc::c_uint, last: libc::c_uint) -> Result<(), JailError> {
    // SAFETY: closes descriptors no object of this process owns yet: it is called before any
    // is taken.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    check(i32::try_from(result).unwrap_or(-1), "closing descriptors").map(|_| ())
}

/// Standard input and output go to `null`, standard error to `log`: whoever reads the caller's
/// pipes sees their end.
///
/// # Errors
/// When a descriptor cannot be duplicated.
pub fn null_stdio(null: RawFd, log: RawFd) -> Result<(), JailError> {
    for (from, to) in [(log, 2), (null, 0), (null, 1)] {
        if from != to {
            // SAFETY: replaces standard descriptors, which nothing holds by ownership.
            check(unsafe { libc::dup2(from, to) }, "the standard descriptors")?;
        }
    }
    Ok(())
}
