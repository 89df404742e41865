//! The io_uring engine: one ring per disk, made when the driver starts it.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use io_uring::{IoUring, opcode, squeue, types};
use vmm_sys_util::eventfd::EventFd;

use super::backing::Backing;
use super::job::{Completion, Job, MAX_JOBS, Operation};

/// One ring and the files its jobs are for.
pub struct UringEngine {
    ring: IoUring,
    backing: Arc<Backing>,
    event: EventFd,
    jobs: Jobs,
}

/// The jobs the kernel may be working on, by the number in their entries. The table grows as it
/// is needed: most disks of a pod, its image's layers, never have more than a few requests at a
/// time.
#[derive(Debug, Default)]
struct Jobs {
    table: Vec<Option<Job>>,
    free: Vec<u16>,
}

impl Jobs {
    /// A free number, with a place in the table.
    fn number(&mut self) -> Option<u16> {
        if let Some(number) = self.free.pop() {
            return Some(number);
        }
        let number = u16::try_from(self.table.len()).ok()?;
        if self.table.len() >= MAX_JOBS {
            return None;
        }
        self.table.push(None);
        Some(number)
    }

    fn put(&mut self, number: u16, job: Job) {
        if let Some(place) = self.table.get_mut(usize::from(number)) {
            *place = Some(job);
        }
    }

    fn take(&mut self, number: u16) -> Option<Job> {
        let job = self.table.get_mut(usize::from(number))?.take()?;
        self.free.push(number);
        Some(job)
    }
}

impl Drop for Jobs {
    /// Where jobs are still in flight the host's storage hangs, and the kernel may yet write to
    /// their memory: leaking them, and the guest memory with them, is all that stays sound.
    fn drop(&mut self) {
        self.table.drain(..).flatten().for_each(std::mem::forget);
    }
}

impl fmt::Debug for UringEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UringEngine")
            .field("backing", &self.backing)
            .finish_non_exhaustive()
    }
}

impl UringEngine {
    /// Makes the ring.
    ///
    /// # Errors
    /// When the kernel refuses io_uring, or lacks an operation this needs.
    pub fn start(backing: Arc<Backing>) -> io::Result<Self> {
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
        Ok(UringEngine {
            ring,
            backing,
            event,
            jobs: Jobs::default(),
        })
    }

    /// See [`super::engine::Engine::queue`].
    pub fn queue(&mut self, job: Job) -> Result<(), Job> {
        let Some(number) = self.jobs.number() else {
            return Err(job);
        };
        let entry = entry(&job, &self.backing).user_data(u64::from(number));
        self.jobs.put(number, job);
        for _ in 0..2 {
            // SAFETY: the list the entry names is that of a job in `jobs`. It stays there, unchanged,
            // until `reap` finds it reported by the kernel, and is leaked when the engine goes
            // before that; and it holds the guest memory its pieces are in. The files are open for as
            // long as the engine is there.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return Ok(());
            }
            // No room: the kernel takes what is queued.
            if self.submit().is_err() {
                break;
            }
        }
        self.jobs.take(number).map_or(Ok(()), Err)
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
            let number = u16::try_from(entry.user_data()).ok();
            if let Some(job) = number.and_then(|number| self.jobs.take(number)) {
                let result = entry.result();
                done.push(Completion { job, result });
            }
        }
    }

    /// Signalled by the kernel at each completion.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}

/// The kernel's form of a job.
fn entry(job: &Job, backing: &Backing) -> squeue::Entry {
    let (file, at) = backing.file_of(job.operation);
    let fd = types::Fd(file.as_raw_fd());
    let pieces = job.pieces().pieces();
    // A list holds at most MAX_PIECES.
    let count = u32::try_from(pieces.len()).unwrap_or(0);
    match job.operation {
        Operation::Read { .. } => opcode::Readv::new(fd, pieces.as_ptr(), count)
            .offset(at)
            .build(),
        Operation::Write { sync, .. } => opcode::Writev::new(fd, pieces.as_ptr(), count)
            .offset(at)
            .rw_flags(if sync { libc::RWF_DSYNC } else { 0 })
            .build(),
        Operation::DataSync => opcode::Fsync::new(fd)
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
        Operation::Allocate { mode, len, .. } => opcode::Fallocate::new(fd, len)
            .offset(at)
            .mode(mode)
            .build(),
    }
}
