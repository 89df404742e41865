//! The fallback engine: one thread per disk, doing jobs in order.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};

use rustix::fs::FallocateFlags;
use vmm_sys_util::eventfd::EventFd;

use super::backing::Backing;
use super::job::{Completion, Job, MAX_JOBS, Operation};

use crate::sync::lock;

/// The thread needs little: system calls and a few frames.
const STACK: usize = 64 << 10;

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
    /// Starts the thread. It ends when the engine is dropped, after the job it is at; the job holds
    /// its memory itself.
    ///
    /// # Errors
    /// When the system gives no thread or descriptor.
    pub fn start(backing: Arc<Backing>) -> io::Result<Self> {
        let (jobs, inbox) = sync_channel::<Job>(MAX_JOBS);
        let done = Arc::new(Mutex::new(Vec::new()));
        let event = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        let (report, signal) = (Arc::clone(&done), Arc::clone(&event));
        std::thread::Builder::new()
            .name("disk".into())
            .stack_size(STACK)
            .spawn(move || {
                while let Ok(job) = inbox.recv() {
                    let result = run(&backing, &job);
                    lock(&report).push(Completion { job, result });
                    // Fails only when the counter is full, and then it is readable anyway.
                    let _ = signal.write(1);
                }
            })?;
        Ok(WorkerEngine { jobs, done, event })
    }

    /// See [`super::engine::Engine::queue`].
    pub fn queue(&mut self, job: Job) -> Result<(), Job> {
        self.jobs.try_send(job).map_err(|e| match e {
            TrySendError::Full(job) | TrySendError::Disconnected(job) => job,
        })
    }

    /// See [`super::engine::Engine::reap`].
    pub fn reap(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut lock(&self.done));
    }

    /// Written after each job.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}

fn run(backing: &Backing, job: &Job) -> i32 {
    loop {
        match attempt(backing, job) {
            Ok(moved) => return i32::try_from(moved).unwrap_or(i32::MAX),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return -e.raw_os_error().unwrap_or(libc::EIO),
        }
    }
}

fn attempt(backing: &Backing, job: &Job) -> io::Result<usize> {
    let data = job.pieces();
    let (file, at) = backing.file_of(job.operation);
    let position = libc::off_t::try_from(at).unwrap_or(libc::off_t::MAX);
    match job.operation {
        Operation::Read { .. } => data.preadv(file.as_fd(), position),
        Operation::Write { sync, .. } => {
            let flags = if sync { libc::RWF_DSYNC } else { 0 };
            data.pwritev(file.as_fd(), position, flags)
        }
        Operation::DataSync => Ok(rustix::fs::fdatasync(file).map(|()| 0)?),
        Operation::Allocate { mode, len, .. } => {
            let mode = FallocateFlags::from_bits_retain(mode.cast_unsigned());
            Ok(rustix::fs::fallocate(file, mode, at, len).map(|()| 0)?)
        }
    }
}
