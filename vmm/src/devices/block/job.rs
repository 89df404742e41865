//! What an engine carries out: one operation on one of the disk's files, with the guest memory it is for.

use vm_memory::GuestAddress;

use crate::virtio::iovec::{HeldIoVecs, IoVecs};

/// The most jobs in flight per disk.
pub const MAX_JOBS: usize = 128;

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Disk to guest memory.
    Read {
        /// Where on the disk.
        offset: u64,
    },
    /// Guest memory to disk.
    Write {
        /// Where on the disk.
        offset: u64,
        /// Durable before it is reported (the driver knows no flush).
        sync: bool,
    },
    /// Data, and what is needed to find it, to stable storage.
    DataSync,
    /// `fallocate(mode, offset, len)`.
    Allocate {
        /// `FALLOC_FL_*`
        mode: i32,
        /// Where on the disk.
        offset: u64,
        /// How much.
        len: u64,
    },
}

/// One request on its way. The engine owns it until it is done, and with it the hold on the
/// memory that the kernel reads or writes meanwhile.
#[derive(Debug)]
pub struct Job {
    /// What to do.
    pub operation: Operation,
    /// What is still to be moved.
    pub data: HeldIoVecs,
    /// The beginning of `data` that is moved now, where the disk's next file has the rest.
    pub now: Option<HeldIoVecs>,
    /// How much there was to move at first.
    pub total: usize,
    /// The position of the ring it came from.
    pub ring: usize,
    /// Its chain there.
    pub head: u16,
    /// Where its status goes, inside guest memory.
    pub status: GuestAddress,
}

impl Job {
    /// What the engine moves.
    #[must_use]
    pub fn pieces(&self) -> &IoVecs<'_> {
        self.now.as_ref().unwrap_or(&self.data).get()
    }
}

/// A finished job.
#[derive(Debug)]
pub struct Completion {
    /// The job.
    pub job: Job,
    /// Bytes moved, or a negative error number.
    pub result: i32,
}
