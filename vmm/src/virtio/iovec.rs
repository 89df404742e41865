//! Descriptor chains turned into checked pieces of guest memory that system calls can take.
//!
//! [`gather`] walks a chain the guest wrote, checks every address and length against guest
//! memory, and leaves host pointers in two [`IoVecs`]: what the device reads and what it
//! writes. Devices hand these to `readv`, `writev` and io_uring, so data is never copied through
//! the VMM. What a request means is the devices' own business, not this module's.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use virtio_queue::DescriptorChain;
use vm_memory::{GuestAddress, GuestMemory, Permissions};

/// The most pieces one chain may have: what one `readv` takes (`IOV_MAX`), less room for a header
/// of the device's own.
pub const MAX_PIECES: usize = 1000;

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

/// One byte of guest memory.
#[derive(Debug, Clone, Copy)]
pub struct GuestByte(*mut u8);

// SAFETY: a plain address; all accesses are unsafe and name their conditions.
unsafe impl Send for GuestByte {}

impl GuestByte {
    /// Stores `value`.
    ///
    /// # Safety
    /// The guest memory it was taken from is still mapped.
    pub unsafe fn write(self, value: u8) {
        // SAFETY: checked against the mapping by `gather`, still mapped by the caller's promise;
        // volatile, as the guest may look at it meanwhile.
        unsafe { ptr::write_volatile(self.0, value) };
    }
}

/// Pieces of guest memory, in order, as host addresses. Reusable: clearing keeps the allocation.
///
/// It does not keep the mapping alive: methods that touch the memory are unsafe, and their caller
/// (a device, which holds its `GuestMemory` from activation to reset) vouches for it.
#[derive(Debug, Default)]
pub struct IoVecs {
    iov: Vec<libc::iovec>,
    /// Pieces before this one are used up.
    first: usize,
    len: usize,
}

// SAFETY: only addresses; see the type's description for who may follow them.
unsafe impl Send for IoVecs {}

impl IoVecs {
    /// No pieces.
    #[must_use]
    pub const fn new() -> Self {
        IoVecs {
            iov: Vec::new(),
            first: 0,
            len: 0,
        }
    }

    /// Forgets all pieces.
    pub fn clear(&mut self) {
        self.iov.clear();
        self.first = 0;
        self.len = 0;
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

    /// The pieces as system calls take them.
    #[must_use]
    pub fn pieces(&self) -> &[libc::iovec] {
        self.iov.get(self.first..).unwrap_or_default()
    }

    /// Appends the guest's range, checked.
    ///
    /// # Errors
    /// When it is not all guest memory, or there are too many pieces.
    pub fn push<M: GuestMemory>(
        &mut self,
        mem: &M,
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
            got = got.saturating_add(slice.len());
        }
        if got != count {
            return Err(outside);
        }
        self.len = self.len.saturating_add(got);
        Ok(())
    }

    /// Appends another list's pieces.
    ///
    /// # Errors
    /// When there would be too many.
    pub fn append(&mut self, other: &IoVecs) -> Result<(), BufferError> {
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
    pub fn take_front(&mut self, n: usize, front: &mut IoVecs) {
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
        self.advance(front.len);
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

    /// Takes the last byte off.
    pub fn pop_byte(&mut self) -> Option<GuestByte> {
        let piece = self.iov.last()?;
        if self.len == 0 || piece.iov_len == 0 {
            return None;
        }
        let byte = piece.iov_base.cast::<u8>().wrapping_add(piece.iov_len - 1);
        self.truncate(self.len - 1);
        Some(GuestByte(byte))
    }

    /// Copies from the start of the pieces into `out`; the number of bytes copied.
    ///
    /// # Safety
    /// The guest memory they were taken from is still mapped.
    pub unsafe fn copy_out(&self, out: &mut [u8]) -> usize {
        let mut rest = out;
        let mut done = 0;
        for piece in self.pieces() {
            if rest.is_empty() {
                break;
            }
            let n = rest.len().min(piece.iov_len);
            let (now, later) = rest.split_at_mut(n);
            // SAFETY: the piece was checked against the mapping, which still stands; `now` is
            // ours and as long. The guest may write meanwhile: then we see some mix of bytes.
            unsafe { ptr::copy_nonoverlapping(piece.iov_base.cast::<u8>(), now.as_mut_ptr(), n) };
            done += n;
            rest = later;
        }
        done
    }

    /// Copies `data` to the start of the pieces; the number of bytes copied.
    ///
    /// # Safety
    /// The guest memory they were taken from is still mapped.
    pub unsafe fn copy_in(&self, data: &[u8]) -> usize {
        // SAFETY: the caller's promise.
        unsafe { self.copy_in_at(0, data) }
    }

    /// Copies `data` to the pieces from byte `offset` on; the number of bytes copied.
    ///
    /// # Safety
    /// The guest memory they were taken from is still mapped.
    pub unsafe fn copy_in_at(&self, offset: usize, data: &[u8]) -> usize {
        let mut skip = offset;
        let mut rest = data;
        let mut done = 0;
        for piece in self.pieces() {
            if rest.is_empty() {
                break;
            }
            if skip >= piece.iov_len {
                skip -= piece.iov_len;
                continue;
            }
            let n = rest.len().min(piece.iov_len - skip);
            let (now, later) = rest.split_at(n);
            let to = piece.iov_base.cast::<u8>().wrapping_add(skip);
            // SAFETY: as in `copy_out`, the other way round; `skip + n` is inside the piece.
            unsafe { ptr::copy_nonoverlapping(now.as_ptr(), to, n) };
            skip = 0;
            done += n;
            rest = later;
        }
        done
    }

    /// Fills the pieces from `fd` with one `readv`.
    ///
    /// # Errors
    /// The system call's.
    ///
    /// # Safety
    /// The guest memory they were taken from is still mapped.
    pub unsafe fn readv(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: the caller's promise.
        unsafe { self.readv_first(fd, MAX_PIECES) }
    }

    /// As [`IoVecs::readv`], using the first `count` pieces only.
    ///
    /// # Errors
    /// The system call's.
    ///
    /// # Safety
    /// The guest memory they were taken from is still mapped.
    pub unsafe fn readv_first(&self, fd: BorrowedFd<'_>, count: usize) -> io::Result<usize> {
        let (ptr, all) = self.raw();
        let count = libc::c_int::try_from(count).map_or(all, |n| n.min(all));
        // SAFETY: `pieces` are checked, mapped ranges, at most IOV_MAX of them.
        let n = unsafe { libc::readv(fd.as_raw_fd(), ptr, count) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// Writes the pieces to `fd` with one `writev`.
    ///
    /// # Errors
    /// The system call's.
    ///
    /// # Safety
    /// The guest memory they were taken from is still mapped.
    pub unsafe fn writev(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        let (ptr, count) = self.raw();
        // SAFETY: as in `readv`.
        let n = unsafe { libc::writev(fd.as_raw_fd(), ptr, count) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// Writes `header`, which is ours, and then the pieces with one `writev`. `list` is scratch.
    ///
    /// # Errors
    /// The system call's.
    ///
    /// # Safety
    /// The guest memory they were taken from is still mapped.
    pub unsafe fn writev_after(
        &self,
        fd: BorrowedFd<'_>,
        header: &[u8],
        list: &mut IoVecs,
    ) -> io::Result<usize> {
        list.clear();
        list.iov.push(libc::iovec {
            iov_base: header.as_ptr().cast_mut().cast(),
            iov_len: header.len(),
        });
        list.iov.extend_from_slice(self.pieces());
        // SAFETY: the header lives through the call, the kernel only reads it; the rest is the
        // caller's promise. One more than MAX_PIECES is still below IOV_MAX.
        let result = unsafe { list.writev(fd) };
        list.clear();
        result
    }

    /// Sends the pieces over socket `fd` with one `sendmsg`; a closed peer raises no signal.
    ///
    /// # Errors
    /// The system call's.
    ///
    /// # Safety
    /// The guest memory they were taken from is still mapped.
    pub unsafe fn send(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        let pieces = self.pieces();
        // SAFETY: plain data, for which zeroes are a valid value.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = pieces.as_ptr().cast_mut();
        message.msg_iovlen = pieces.len();
        // SAFETY: as in `readv`; the kernel only reads the list and the pieces.
        let n = unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// Fills the pieces from `fd`, from byte `offset` of it on, with one `preadv`.
    ///
    /// # Errors
    /// The system call's.
    ///
    /// # Safety
    /// The guest memory they were taken from is still mapped.
    pub unsafe fn preadv(&self, fd: BorrowedFd<'_>, offset: i64) -> io::Result<usize> {
        let (ptr, count) = self.raw();
        // SAFETY: as in `readv`.
        let n = unsafe { libc::preadv(fd.as_raw_fd(), ptr, count, offset) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// Writes the pieces to `fd`, from byte `offset` of it on, with one `pwritev`.
    ///
    /// # Errors
    /// The system call's.
    ///
    /// # Safety
    /// The guest memory they were taken from is still mapped.
    pub unsafe fn pwritev(&self, fd: BorrowedFd<'_>, offset: i64) -> io::Result<usize> {
        let (ptr, count) = self.raw();
        // SAFETY: as in `readv`.
        let n = unsafe { libc::pwritev(fd.as_raw_fd(), ptr, count, offset) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
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

/// Walks `chain` and appends what it names to `readable` and `writable`.
///
/// # Errors
/// See [`BufferError`]; the lists then hold what came before the bad descriptor.
pub fn gather<M: GuestMemory>(
    chain: DescriptorChain<&M>,
    mem: &M,
    readable: &mut IoVecs,
    writable: &mut IoVecs,
) -> Result<(), BufferError> {
    let mut seen_writable = false;
    for descriptor in chain {
        if descriptor.is_write_only() {
            seen_writable = true;
            writable.push(mem, descriptor.addr(), descriptor.len(), Permissions::Write)?;
        } else {
            if seen_writable {
                return Err(BufferError::ReadableAfterWritable);
            }
            readable.push(mem, descriptor.addr(), descriptor.len(), Permissions::Read)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use virtio_queue::desc::{RawDescriptor, split::Descriptor};
    use virtio_queue::mock::MockSplitQueue;
    use vm_memory::{Bytes, GuestMemoryMmap};

    use super::*;

    const WRITE: u16 = 2;

    fn memory() -> GuestMemoryMmap<()> {
        // Two regions with a hole between them.
        GuestMemoryMmap::from_ranges(&[
            (GuestAddress(0), 0x10_0000),
            (GuestAddress(0x20_0000), 0x1000),
        ])
        .unwrap()
    }

    fn chain_of(
        mem: &GuestMemoryMmap<()>,
        descriptors: &[(u64, u32, u16)],
    ) -> Result<(IoVecs, IoVecs), BufferError> {
        let queue = MockSplitQueue::new(mem, 16);
        let raw: Vec<_> = descriptors
            .iter()
            .map(|&(addr, len, flags)| RawDescriptor::from(Descriptor::new(addr, len, flags, 0)))
            .collect();
        let chain = queue.build_desc_chain(&raw).unwrap();
        let (mut readable, mut writable) = (IoVecs::new(), IoVecs::new());
        gather(chain, mem, &mut readable, &mut writable).map(|()| (readable, writable))
    }

    #[test]
    fn pieces_are_where_the_guest_put_them() {
        let mem = memory();
        mem.write_slice(b"hello ", GuestAddress(0x8000)).unwrap();
        mem.write_slice(b"world", GuestAddress(0x20_0000)).unwrap();
        let (readable, mut writable) = chain_of(
            &mem,
            &[
                (0x8000, 6, 0),
                (0x20_0000, 5, 0),
                (0x9000, 3, WRITE),
                (0xa000, 2, WRITE),
            ],
        )
        .unwrap();
        let mut text = [0u8; 32];
        // SAFETY: `mem` lives to the end of the test.
        let n = unsafe { readable.copy_out(&mut text) };
        assert_eq!(&text[..n], b"hello world");
        let status = writable.pop_byte().unwrap();
        assert_eq!(writable.len(), 4);
        writable.advance(1);
        // SAFETY: as above.
        unsafe {
            status.write(7);
            assert_eq!(writable.copy_in(b"abcdef"), 3);
        }
        let mut at = [0u8; 3];
        mem.read_slice(&mut at, GuestAddress(0x9000)).unwrap();
        assert_eq!(&at, b"\0ab");
        let mut at = [0u8; 2];
        mem.read_slice(&mut at, GuestAddress(0xa000)).unwrap();
        assert_eq!(&at, b"c\x07");
    }

    #[test]
    fn what_is_not_guest_memory_is_refused() {
        let mem = memory();
        for (addr, len) in [
            (0x10_0000, 1),
            (0xf_ffff, 2),
            (0x20_0fff, 2),
            (u64::MAX, 1),
            (u64::MAX - 3, 16),
            (0x8000, u32::MAX),
        ] {
            assert!(
                matches!(
                    chain_of(&mem, &[(addr, len, 0)]),
                    Err(BufferError::OutOfMemory { .. })
                ),
                "{addr:#x}+{len:#x}"
            );
        }
    }

    #[test]
    fn readable_after_writable_is_refused() {
        let mem = memory();
        assert_eq!(
            chain_of(&mem, &[(0x8000, 6, WRITE), (0x9000, 1, 0)]).unwrap_err(),
            BufferError::ReadableAfterWritable
        );
    }

    proptest! {
        #[test]
        fn advance_and_truncate_keep_the_sum(
            lens in proptest::collection::vec(0u32..100, 1..12),
            front in 0usize..1300, keep in 0usize..1300,
        ) {
            let mem = memory();
            let mut segments = IoVecs::new();
            for (i, len) in lens.iter().enumerate() {
                let addr = GuestAddress(0x8000 + 0x1000 * i as u64);
                segments.push(&mem, addr, *len, Permissions::Read).unwrap();
            }
            let total: usize = lens.iter().map(|l| *l as usize).sum();
            segments.advance(front);
            prop_assert_eq!(segments.len(), total.saturating_sub(front));
            segments.truncate(keep);
            prop_assert_eq!(segments.len(), total.saturating_sub(front).min(keep));
            let sum: usize = segments.pieces().iter().map(|p| p.iov_len).sum();
            prop_assert_eq!(sum, segments.len());
        }

        #[test]
        fn any_descriptors_are_either_inside_or_refused(
            raw in proptest::collection::vec((any::<u64>(), any::<u32>(), any::<u16>()), 1..8),
        ) {
            let mem = memory();
            let descriptors: Vec<_> =
                raw.iter().map(|&(a, l, f)| (a, l, f & WRITE)).collect();
            if let Ok((readable, writable)) = chain_of(&mem, &descriptors) {
                prop_assert!(readable.len() + writable.len() <= 0x10_1000 * descriptors.len());
            }
        }
    }
}
