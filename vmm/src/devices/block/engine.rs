//! Carries disk actions out without blocking the I/O thread.
//!
//! io_uring where the kernel allows it, else one worker thread per disk. Both own the jobs they
//! are given until these are done, and report that through one eventfd; neither looks at rings.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

use super::backing::Backing;
use super::job::{Completion, Job};
use super::uring::UringEngine;
use super::worker::WorkerEngine;
use crate::poll::{poll, readable};

/// Which engine to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EngineKind {
    /// io_uring; the worker thread where the kernel refuses that.
    #[default]
    Auto,
    /// The worker thread.
    Worker,
}

/// A running engine.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "one per disk, and nearly always the large one"
)]
pub enum Engine {
    /// io_uring.
    Uring(UringEngine),
    /// One thread.
    Worker(WorkerEngine),
}

impl Engine {
    /// Starts an engine on a disk's files.
    ///
    /// # Errors
    /// When neither can be set up.
    pub fn start(kind: EngineKind, backing: &Arc<Backing>) -> io::Result<Engine> {
        if kind == EngineKind::Auto {
            // Whatever the reason (ENOSYS, EPERM by sysctl or seccomp, ENOMEM by the memlock
            // limit of old kernels), the worker does the same work.
            if let Ok(engine) = UringEngine::start(Arc::clone(backing)) {
                return Ok(Engine::Uring(engine));
            }
        }
        WorkerEngine::start(Arc::clone(backing)).map(Engine::Worker)
    }

    /// Its name, for the metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Engine::Uring(_) => "io_uring",
            Engine::Worker(_) => "thread",
        }
    }

    /// Queues a job. At most [`MAX_JOBS`](super::job::MAX_JOBS) may be unfinished.
    ///
    /// # Errors
    /// The job, when the engine is full or dead.
    pub fn queue(&mut self, job: Job) -> Result<(), Job> {
        match self {
            Engine::Uring(e) => e.queue(job),
            Engine::Worker(e) => e.queue(job),
        }
    }

    /// Starts what was queued.
    ///
    /// # Errors
    /// The kernel's.
    pub fn submit(&mut self) -> io::Result<()> {
        match self {
            Engine::Uring(e) => e.submit(),
            Engine::Worker(_) => Ok(()),
        }
    }

    /// Takes finished jobs. Those that finish after it signal the descriptor.
    pub fn reap(&mut self, done: &mut Vec<Completion>) {
        match self {
            Engine::Uring(e) => e.reap(done),
            Engine::Worker(e) => e.reap(done),
        }
    }

    fn event(&self) -> &EventFd {
        match self {
            Engine::Uring(e) => e.event(),
            Engine::Worker(e) => e.event(),
        }
    }

    /// Signalled when jobs finish. To be watched edge-triggered: it is not read in between.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.event().as_raw_fd()
    }

    /// Waits until a job may have finished.
    ///
    /// # Errors
    /// `TimedOut` at the deadline.
    pub fn wait(&self, deadline: Instant) -> io::Result<()> {
        loop {
            if Instant::now() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            if poll(&mut [readable(self.fd())], Some(deadline))? > 0 {
                // A job that finishes after this makes it readable again.
                let _ = self.event().read();
                return Ok(());
            }
        }
    }
}
