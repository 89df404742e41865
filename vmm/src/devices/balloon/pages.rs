//! Gives ranges of guest memory back to the host.

use std::io;

use crate::virtio::iovec::IoVecs;

/// The host's page size on the one architecture there is.
const HOST_PAGE: usize = 4096;

/// Drops the content of whole host pages in `ranges`; the bytes dropped.
///
/// The guest finds zeroes there, or, in a restored VM, what the snapshot had: it has said that it
/// does not care (no PAGE_POISON is offered), and either content was its own.
///
/// # Errors
/// The system's, for the first range it refuses.
///
/// # Safety
/// The guest memory the ranges were taken from is still mapped, privately.
pub unsafe fn give_back(ranges: &IoVecs) -> io::Result<u64> {
    let mut given = 0;
    for piece in ranges.pieces() {
        let base = piece.iov_base.addr();
        let start = base.next_multiple_of(HOST_PAGE);
        let end = base.saturating_add(piece.iov_len) & !(HOST_PAGE - 1);
        let Some(len) = end.checked_sub(start).filter(|len| *len > 0) else {
            continue;
        };
        let at = piece.iov_base.with_addr(start);
        // SAFETY: whole pages inside a piece that was checked against guest memory, which only
        // guest and devices use, always by address: no reference into it exists.
        if unsafe { libc::madvise(at, len, libc::MADV_DONTNEED) } < 0 {
            return Err(io::Error::last_os_error());
        }
        given += len as u64;
    }
    Ok(given)
}
