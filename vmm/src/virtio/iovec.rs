//! Guest memory as lists of checked pieces that system calls can take.
//!
//! Every address and length is checked against guest memory when it comes in; devices hand the
//! lists to `readv`, `writev` and io_uring, so data is never copied through the VMM.
//! `super::buffers` makes lists of what a chain names.
//!
//! An [`IoVecs`] borrows the guest memory its pieces are in, so that all it offers is safe. Work
//! that outlives the call it came with (a disk's requests, a network card's receive buffers) has
//! [`HeldIoVecs`], which keep the memory mapped themselves. Beside this module only the io_uring
//! engine and vhost-net pass guest addresses to the kernel.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemory as Memory, Permissions, VolatileSlice};

use crate::memory::GuestMemory;

/// The most pieces one list may have: what one `readv` takes (`IOV_MAX`), less room for a header
/// of the device's own.
pub const MAX_PIECES: usize = 1000;

/// The host's page size on the one architecture there is.
const HOST_PAGE: usize = 4096;

/// Why a chain cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BufferError {
    /// A descriptor names memory the guest does not have.
    #[error("a descriptor of {len} bytes at {addr:#x} is outside guest memory")]
    OutOfMemory {
        /// The guest address.
        addr: u64,
        /// The length of the descriptor.
        len: u32,
    },
    /// virtio 1.2 §2.7.4.2: device-readable descriptors come first.
    #[error("a device-readable descriptor follows a device-writable one")]
    ReadableAfterWritable,
    /// More pieces than a system call takes.
    #[error("the chain has more than {MAX_PIECES} pieces")]
    TooManyPieces,
}

/// Pieces of guest memory, in order, as host addresses.
///
/// Invariant: every piece is part of a guest memory that stays mapped for `'m`. `push` is where
/// pieces come from; everything else only cuts or copies them. No reference into guest memory
/// ever exists, as the guest writes there at any time: whoever copies sees some mix of old and
/// new bytes.
///
/// A list cannot outlive the memory its pieces are in:
///
/// ```compile_fail,E0597
/// use bulkhead_vmm::{memory, virtio::iovec::IoVecs};
/// use vm_memory::{GuestAddress, Permissions};
///
/// let mut list = IoVecs::new();
/// {
///     let mem = memory::anonymous(1 << 20).unwrap();
///     list.push(&mem, GuestAddress(0), 16, Permissions::Read).unwrap();
/// }
/// assert_eq!(list.len(), 16);
/// ```
#[derive(Debug, Default)]
pub struct IoVecs<'m> {
    iov: Vec<libc::iovec>,
    /// Pieces before this one are used up.
    first: usize,
    len: usize,
    memory: PhantomData<&'m ()>,
}

// SAFETY: the pieces are addresses in a mapping that all threads share and that no `&` or `&mut`
// ever points into; which thread follows them makes no difference.
unsafe impl Send for IoVecs<'_> {}

impl<'m> IoVecs<'m> {
    /// No pieces.
    #[must_use]
    pub const fn new() -> Self {
        IoVecs {
            iov: Vec::new(),
            first: 0,
            len: 0,
            memory: PhantomData,
        }
    }

    /// Drops all pieces, and keeps the allocation.
    pub fn clear(&mut self) {
        self.iov.clear();
        self.first = 0;
        self.len = 0;
    }

    /// An empty list with this one's allocation, for pieces of another memory.
    #[must_use]
    pub fn recycle<'n>(mut self) -> IoVecs<'n> {
        self.clear();
        self.relabel()
    }

    /// The same pieces under another lifetime. The caller sees to the type's invariant.
    fn relabel<'n>(self) -> IoVecs<'n> {
        IoVecs {
            iov: self.iov,
            first: self.first,
            len: self.len,
            memory: PhantomData,
        }
    }

    /// Total bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is not a byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many pieces there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.pieces().len()
    }

    /// The pieces as system calls take them.
    #[must_use]
    pub(crate) fn pieces(&self) -> &[libc::iovec] {
        self.iov.get(self.first..).unwrap_or_default()
    }

    /// Appends the guest's range, checked.
    ///
    /// # Errors
    /// When it is not all guest memory, or there are too many pieces.
    pub fn push<M: Memory>(
        &mut self,
        mem: &'m M,
        addr: GuestAddress,
        len: u32,
        access: Permissions,
    ) -> Result<(), BufferError> {
        if len == 0 {
            return Ok(());
        }
        let outside = BufferError::OutOfMemory { addr: addr.0, len };
        // u32 always fits: this crate is for 64-bit machines only.
        let count = usize::try_from(len).map_err(|_| outside)?;
        let slices = mem.get_slices(addr, count, access).map_err(|_| outside)?;
        let mut got = 0usize;
        for slice in slices {
            let slice = slice.map_err(|_| outside)?;
            if self.pieces().len() >= MAX_PIECES {
                return Err(BufferError::TooManyPieces);
            }
            self.iov.push(libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            });
            self.len = self.len.saturating_add(slice.len());
            got = got.saturating_add(slice.len());
        }
        if got != count {
            return Err(outside);
        }
        Ok(())
    }

    /// Appends another list's pieces.
    ///
    /// # Errors
    /// When there would be too many.
    pub fn append(&mut self, other: &IoVecs<'m>) -> Result<(), BufferError> {
        if self.pieces().len() + other.pieces().len() > MAX_PIECES {
            return Err(BufferError::TooManyPieces);
        }
        self.iov.extend_from_slice(other.pieces());
        self.len = self.len.saturating_add(other.len);
        Ok(())
    }

    /// Drops up to `n` bytes from the front.
    pub fn advance(&mut self, mut n: usize) {
        if n >= self.len {
            self.clear();
            return;
        }
        if self.first > MAX_PIECES {
            self.iov.drain(..self.first);
            self.first = 0;
        }
        while n > 0 {
            let Some(piece) = self.iov.get_mut(self.first) else {
                return;
            };
            let step = n.min(piece.iov_len);
            piece.iov_base = piece.iov_base.cast::<u8>().wrapping_add(step).cast();
            piece.iov_len -= step;
            self.len -= step;
            n -= step;
            if piece.iov_len == 0 {
                self.first += 1;
            }
        }
    }

    /// Moves up to `n` bytes from the front to `front`, which is cleared before.
    pub fn take_front(&mut self, n: usize, front: &mut IoVecs<'m>) {
        self.copy_front(n, front);
        self.advance(front.len);
    }

    /// Makes `front` the first `n` bytes, or all if there are no more.
    fn copy_front(&self, n: usize, front: &mut IoVecs<'m>) {
        front.clear();
        for piece in self.pieces() {
            let take = piece.iov_len.min(n - front.len);
            if take == 0 {
                break;
            }
            front.iov.push(libc::iovec {
                iov_base: piece.iov_base,
                iov_len: take,
            });
            front.len += take;
        }
    }

    /// Keeps at most the first `n` bytes.
    pub fn truncate(&mut self, n: usize) {
        while self.len > n {
            let excess = self.len - n;
            let Some(piece) = self.iov.last_mut() else {
                return;
            };
            let step = excess.min(piece.iov_len);
            piece.iov_len -= step;
            self.len -= step;
            if piece.iov_len == 0 {
                self.iov.pop();
            }
        }
    }

    /// The pieces as views whose copies are safe.
    fn slices(&self) -> impl Iterator<Item = VolatileSlice<'m>> {
        self.pieces().iter().map(|piece| {
            // SAFETY: the type's invariant: so many bytes at this address are guest memory, which
            // is mapped for 'm and is only ever reached by volatile access or by the kernel.
            unsafe { VolatileSlice::new(piece.iov_base.cast(), piece.iov_len) }
        })
    }

    /// Copies from the start of the pieces to `out`; the number of bytes copied.
    pub fn copy_to(&self, out: &mut [u8]) -> usize {
        let mut rest = out;
        let mut done = 0;
        for slice in self.slices() {
            let n = slice.copy_to(rest);
            done += n;
            rest = rest.get_mut(n..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
        }
        done
    }

    /// Copies `data` to the start of the pieces; the number of bytes copied.
    pub fn copy_from(&self, data: &[u8]) -> usize {
        self.write_at(0, data)
    }

    /// Copies `data` to the pieces from byte `offset` on; the number of bytes copied.
    pub fn write_at(&self, offset: usize, data: &[u8]) -> usize {
        let mut skip = offset;
        let mut rest = data;
        let mut done = 0;
        for slice in self.slices() {
            if rest.is_empty() {
                break;
            }
            let Some(room) = slice.len().checked_sub(skip).filter(|room| *room > 0) else {
                skip -= slice.len();
                continue;
            };
            let (now, later) = rest.split_at(rest.len().min(room));
            // `skip` is inside the slice: there is room behind it.
            if let Ok(slice) = slice.offset(skip) {
                slice.copy_from(now);
            }
            skip = 0;
            done += now.len();
            rest = later;
        }
        done
    }

    /// Fills the pieces from `fd` with one `readv`.
    ///
    /// # Errors
    /// The system call's.
    pub fn readv(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        self.readv_first(fd, MAX_PIECES)
    }

    /// As [`IoVecs::readv`], using the first `count` pieces only.
    ///
    /// # Errors
    /// The system call's.
    pub fn readv_first(&self, fd: BorrowedFd<'_>, count: usize) -> io::Result<usize> {
        let (ptr, all) = self.raw();
        let count = libc::c_int::try_from(count).map_or(all, |n| n.min(all));
        // SAFETY: a list of ours with at least `count` entries, each (the type's invariant) guest
        // memory that is mapped for longer than the call and that the kernel may write.
        moved(unsafe { libc::readv(fd.as_raw_fd(), ptr, count) })
    }

    /// Writes the pieces to `fd` with one `writev`.
    ///
    /// # Errors
    /// The system call's.
    pub fn writev(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        let (ptr, count) = self.raw();
        // SAFETY: a list of ours with `count` entries, each guest memory that is mapped for longer
        // than the call (the type's invariant), which the kernel only reads.
        moved(unsafe { libc::writev(fd.as_raw_fd(), ptr, count) })
    }

    /// Writes `header`, which is not the guest's, and then the pieces with one `writev`. `list` is
    /// scratch.
    ///
    /// # Errors
    /// The system call's.
    pub fn writev_after(
        &self,
        fd: BorrowedFd<'_>,
        header: &[u8],
        list: &mut IoVecs<'m>,
    ) -> io::Result<usize> {
        list.clear();
        list.iov.push(libc::iovec {
            iov_base: header.as_ptr().cast_mut().cast(),
            iov_len: header.len(),
        });
        // One more than MAX_PIECES is still below IOV_MAX.
        list.iov.extend_from_slice(self.pieces());
        // For this call the list has a piece that is not guest memory: it is only read, and the
        // piece is gone before `header` is.
        let result = list.writev(fd);
        list.clear();
        result
    }

    /// Sends the pieces over socket `fd` with one `sendmsg`; a closed peer raises no signal.
    ///
    /// # Errors
    /// The system call's.
    pub fn send(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        let pieces = self.pieces();
        // SAFETY: plain data, for which zeroes are a valid value.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = pieces.as_ptr().cast_mut();
        message.msg_iovlen = pieces.len();
        // SAFETY: a message without address or control data; its list is ours and as long as it
        // says, and each entry is guest memory that is mapped for longer than the call (the type's
        // invariant). The kernel only reads list and pieces.
        moved(unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) })
    }

    /// Fills the pieces from `fd`, from byte `offset` of it on, with one `preadv`.
    ///
    /// # Errors
    /// The system call's.
    pub fn preadv(&self, fd: BorrowedFd<'_>, offset: i64) -> io::Result<usize> {
        let (ptr, count) = self.raw();
        // SAFETY: a list of ours with `count` entries, each guest memory that is mapped for longer
        // than the call (the type's invariant) and that the kernel may write.
        moved(unsafe { libc::preadv(fd.as_raw_fd(), ptr, count, offset) })
    }

    /// Writes the pieces to `fd`, from byte `offset` of it on, with one `pwritev2`; `flags` are
    /// its `RWF_*`.
    ///
    /// # Errors
    /// The system call's.
    pub fn pwritev(&self, fd: BorrowedFd<'_>, offset: i64, flags: i32) -> io::Result<usize> {
        let (ptr, count) = self.raw();
        // SAFETY: a list of ours with `count` entries, each guest memory that is mapped for longer
        // than the call (the type's invariant), which the kernel only reads.
        moved(unsafe { libc::pwritev2(fd.as_raw_fd(), ptr, count, offset, flags) })
    }

    /// Gives whole host pages in the pieces back to the host; the bytes given back.
    ///
    /// The guest then finds zeroes there, or, where a snapshot's file is mapped, what the snapshot
    /// had.
    ///
    /// # Errors
    /// The system's, for the first piece it refuses.
    pub fn discard(&self) -> io::Result<u64> {
        let mut given = 0;
        for piece in self.pieces() {
            let base = piece.iov_base.addr();
            let start = base.next_multiple_of(HOST_PAGE);
            let end = base.saturating_add(piece.iov_len) & !(HOST_PAGE - 1);
            let Some(len) = end.checked_sub(start).filter(|len| *len > 0) else {
                continue;
            };
            let at = piece.iov_base.with_addr(start);
            // SAFETY: whole pages inside one piece, which is mapped guest memory (the type's
            // invariant). They stay mapped; only their content changes, as it may at any time: no
            // reference into guest memory exists.
            if unsafe { libc::madvise(at, len, libc::MADV_DONTNEED) } < 0 {
                return Err(io::Error::last_os_error());
            }
            given += len as u64;
        }
        Ok(given)
    }

    fn raw(&self) -> (*const libc::iovec, libc::c_int) {
        let pieces = self.pieces();
        // `push` and `append` keep the count far below c_int's end.
        (
            pieces.as_ptr(),
            libc::c_int::try_from(pieces.len()).unwrap_or(0),
        )
    }
}

/// What a system call that moves data returned.
fn moved(n: isize) -> io::Result<usize> {
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// An [`IoVecs`] with its own hold on the memory its pieces are in: for work that outlives the
/// call it came with.
#[derive(Debug)]
pub struct HeldIoVecs {
    /// Pieces of `mem`, or of memory that is never unmapped. 'static is not for others to see:
    /// `with` and `get` give them the lifetime of their borrow of `self`.
    list: IoVecs<'static>,
    mem: Arc<GuestMemory>,
}

impl HeldIoVecs {
    /// No pieces yet.
    #[must_use]
    pub fn new(mem: Arc<GuestMemory>) -> Self {
        HeldIoVecs {
            list: IoVecs::new(),
            mem,
        }
    }

    /// Lets `f` work on the list with the memory held. It must do so for any lifetime, so all it
    /// can put into the list are pieces of this memory:
    ///
    /// ```compile_fail,E0597
    /// use std::sync::Arc;
    ///
    /// use bulkhead_vmm::{memory, virtio::iovec::HeldIoVecs};
    /// use vm_memory::{GuestAddress, Permissions};
    ///
    /// let other = memory::anonymous(1 << 20).unwrap();
    /// let mut held = HeldIoVecs::new(Arc::new(memory::anonymous(1 << 20).unwrap()));
    /// held.with(|_, list| list.push(&other, GuestAddress(0), 16, Permissions::Read))
    ///     .unwrap();
    /// ```
    pub fn with<R>(&mut self, f: impl for<'m> FnOnce(&'m GuestMemory, &mut IoVecs<'m>) -> R) -> R {
        let mut list = std::mem::take(&mut self.list).relabel();
        let result = f(&self.mem, &mut list);
        self.list = list.relabel();
        result
    }

    /// The list.
    #[must_use]
    pub fn get(&self) -> &IoVecs<'_> {
        &self.list
    }

    /// Drops up to `n` bytes from the front.
    pub fn advance(&mut self, n: usize) {
        self.list.advance(n);
    }

    /// The first `n` bytes, or all if there are no more, with a hold of their own.
    #[must_use]
    pub fn first(&self, n: usize) -> HeldIoVecs {
        let mut first = HeldIoVecs::new(Arc::clone(&self.mem));
        self.list.copy_front(n, &mut first.list);
        first
    }
}

#[cfg(test)]
mod tests;
