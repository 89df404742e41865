//! The fallback engine: one thread per disk, doing jobs in order.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::engine::{Completion, MAX_JOBS, Operation};
use crate::memory::GuestMemory;
use crate::virtio::iovec::IoVecs;

/// The thread needs little: system calls and a few frames.
const STACK: usize = 64 << 10;

struct Job {
    number: u16,
    operation: Operation,
    pieces: *const libc::iovec,
    count: i32,
}

// SAFETY: addresses only; `WorkerEngine::queue` has its caller keep them valid until the job is
// reported.
unsafe impl Send for Job {}

/// The thread's end of things.
pub struct WorkerEngine {
    jobs: SyncSender<Job>,
    done: Arc<Mutex<Vec<Completion>>>,
    event: Arc<EventFd>,
}

impl fmt::Debug for WorkerEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerEngine").finish_non_exhaustive()
    }
}

impl WorkerEngine {
    /// Starts the thread. It ends when the engine is dropped, and holds `mem` until then, so that
    /// a job that is still running finds its memory mapped.
    ///
    /// # Errors
    /// When no thread or descriptor is to be had.
    pub fn start(file: Arc<File>, mem: GuestMemory) -> io::Result<Self> {
        let (jobs, inbox) = sync_channel::<Job>(MAX_JOBS);
        let done = Arc::new(Mutex::new(Vec::new()));
        let event = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        let (report, signal) = (Arc::clone(&done), Arc::clone(&event));
        std::thread::Builder::new()
            .name("disk".into())
            .stack_size(STACK)
            .spawn(move || {
                let _mem = mem;
                while let Ok(job) = inbox.recv() {
                    let result = run(&file, &job);
                    report
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push((job.number, result));
                    // Fails only when the counter is full, and then it is readable anyway.
                    let _ = signal.write(1);
                }
            })?;
        Ok(WorkerEngine { jobs, done, event })
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
        let pieces = data.pieces();
        self.jobs
            .try_send(Job {
                number: job,
                operation,
                pieces: pieces.as_ptr(),
                count: i32::try_from(pieces.len()).unwrap_or(0),
            })
            .map_err(|e| match e {
                TrySendError::Full(_) => io::ErrorKind::ResourceBusy.into(),
                TrySendError::Disconnected(_) => io::ErrorKind::BrokenPipe.into(),
            })
    }

    /// See [`super::engine::Engine::reap`].
    pub fn reap(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.done.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Written after each job.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}

fn run(file: &File, job: &Job) -> i32 {
    let fd = file.as_raw_fd();
    let position = |offset: u64| libc::off_t::try_from(offset).unwrap_or(libc::off_t::MAX);
    loop {
        let n = match job.operation {
            // SAFETY: the pieces stay valid until this job is reported (see `queue`).
            Operation::Read { offset } => unsafe {
                libc::preadv(fd, job.pieces, job.count, position(offset))
            },
            Operation::Write { offset, sync } => {
                let flags = if sync { libc::RWF_DSYNC } else { 0 };
                // SAFETY: as above.
                unsafe { libc::pwritev2(fd, job.pieces, job.count, position(offset), flags) }
            }
            // SAFETY: a call on our own descriptor.
            Operation::DataSync => unsafe { libc::fdatasync(fd) as isize },
            // SAFETY: as above.
            Operation::Allocate { mode, offset, len } => unsafe {
                libc::fallocate(fd, mode, position(offset), position(len)) as isize
            },
        };
        if n >= 0 {
            return i32::try_from(n).unwrap_or(i32::MAX);
        }
        let e = io::Error::last_os_error();
        if e.kind() != io::ErrorKind::Interrupted {
            return -e.raw_os_error().unwrap_or(libc::EIO);
        }
    }
}
