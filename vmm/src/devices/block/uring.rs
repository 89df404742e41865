//! The io_uring engine: one ring per disk, made when the driver starts it.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use io_uring::{IoUring, opcode, squeue, types};
use vmm_sys_util::eventfd::EventFd;

use super::engine::{Completion, MAX_JOBS, Operation};
use crate::virtio::iovec::IoVecs;

/// One ring and the file its jobs are for.
pub struct UringEngine {
    ring: IoUring,
    file: Arc<File>,
    event: EventFd,
}

impl fmt::Debug for UringEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UringEngine")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl UringEngine {
    /// Makes the ring.
    ///
    /// # Errors
    /// When the kernel has none for us, or an operation we need is missing in it.
    pub fn start(file: Arc<File>) -> io::Result<Self> {
        let entries = u32::try_from(MAX_JOBS).unwrap_or(128);
        let ring = IoUring::new(entries)?;
        let mut probe = io_uring::Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        for code in [
            opcode::Readv::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
            opcode::Fallocate::CODE,
        ] {
            if !probe.is_supported(code) {
                return Err(io::ErrorKind::Unsupported.into());
            }
        }
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        Ok(UringEngine { ring, file, event })
    }

    /// See [`super::engine::Engine::queue`].
    ///
    /// # Safety
    /// As there.
    pub unsafe fn queue(
        &mut self,
        job: u16,
        operation: Operation,
        data: &IoVecs,
    ) -> io::Result<()> {
        let fd = types::Fd(self.file.as_raw_fd());
        let pieces = data.pieces();
        // `IoVecs` holds at most MAX_PIECES.
        let count = u32::try_from(pieces.len()).unwrap_or(0);
        let entry: squeue::Entry = match operation {
            Operation::Read { offset } => opcode::Readv::new(fd, pieces.as_ptr(), count)
                .offset(offset)
                .build(),
            Operation::Write { offset, sync } => opcode::Writev::new(fd, pieces.as_ptr(), count)
                .offset(offset)
                .rw_flags(if sync { libc::RWF_DSYNC } else { 0 })
                .build(),
            Operation::DataSync => opcode::Fsync::new(fd)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
            Operation::Allocate { mode, offset, len } => opcode::Fallocate::new(fd, len)
                .offset(offset)
                .mode(mode)
                .build(),
        };
        let entry = entry.user_data(u64::from(job));
        // SAFETY: the caller keeps data and memory valid until completion; the file is ours.
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.submit()?;
            // SAFETY: as above.
            unsafe { self.ring.submission().push(&entry) }
                .map_err(|_| io::Error::from(io::ErrorKind::ResourceBusy))?;
        }
        Ok(())
    }

    /// See [`super::engine::Engine::submit`].
    ///
    /// Jobs that finish during the call (cached data) do not signal: the caller reaps after it
    /// anyway, and so a cached read costs no event.
    pub fn submit(&mut self) -> io::Result<()> {
        if self.ring.submission().is_empty() {
            return Ok(());
        }
        self.ring.completion().disable_eventfd();
        let result = self.enter();
        self.ring.completion().enable_eventfd();
        // Before the caller looks at the ring: a job that finished and saw signalling off is seen
        // there, one that is not seen there has seen signalling on.
        fence(Ordering::SeqCst);
        result
    }

    fn enter(&mut self) -> io::Result<()> {
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// See [`super::engine::Engine::reap`].
    pub fn reap(&mut self, done: &mut Vec<Completion>) {
        for entry in self.ring.completion() {
            // Only numbers given to `queue` come back.
            if let Ok(job) = u16::try_from(entry.user_data()) {
                done.push((job, entry.result()));
            }
        }
    }

    /// Signalled by the kernel at each completion.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}
