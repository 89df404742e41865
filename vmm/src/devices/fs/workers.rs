//! The threads that serve requests: a few, so that requests of the guest are under way together
//! and none waits for the disk another one waits for.
//!
//! They wait for the driver's kicks themselves. Who takes a request sees whether there are more,
//! and wakes one of the others. Rings are touched under one lock, held for no system call.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use rustix::fs::Mode;
use virtio_queue::DescriptorChain;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::server::{Scratch, Server};
use crate::memory::GuestMemory;
use crate::sync::lock;
use crate::virtio::device::QueueState;
use crate::virtio::queue::Active;

/// How many threads.
const THREADS: usize = 4;
/// Their needs are small: data goes between files and guest memory directly.
const STACK: usize = 128 * 1024;
/// How long requests in flight may take to finish at a pause or reset.
const DRAIN: Duration = Duration::from_secs(10);

/// The threads, and what they serve.
#[derive(Debug)]
pub struct Workers(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    server: Server,
    epoll: Epoll,
    wake: EventFd,
    state: Mutex<State>,
    /// A request or a thread has ended.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    session: Option<Session>,
    /// Counts sessions: what a reset left in flight is not answered in the next.
    number: u64,
    paused: bool,
    stop: bool,
    /// Threads that wait for a wake-up.
    idle: usize,
    in_flight: usize,
    alive: usize,
}

/// Between activation and reset.
#[derive(Debug)]
struct Session {
    active: Active,
}

/// A request that has been taken from its ring.
struct Job {
    session: u64,
    ring: usize,
    /// Keeps guest memory mapped, whatever becomes of the session.
    chain: DescriptorChain<Arc<GuestMemory>>,
    mem: Arc<GuestMemory>,
}

enum Next {
    Job(Job),
    Nothing,
    Stop,
}

impl Workers {
    /// Starts the threads. Each calls `prepare` first, to take the privileges it is to keep.
    ///
    /// # Errors
    /// When one cannot be started, or not prepared.
    pub fn start(
        server: Server,
        prepare: impl Fn() -> io::Result<()> + Clone + Send + 'static,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let workers = Workers(Arc::new(Shared {
            server,
            epoll,
            wake,
            state: Mutex::default(),
            changed: Condvar::new(),
        }));
        let shared = &workers.0;
        shared.watch(&shared.wake)?;
        let (sender, receiver) = mpsc::channel();
        for number in 0..THREADS {
            let (shared, sender, prepare) = (Arc::clone(shared), sender.clone(), prepare.clone());
            std::thread::Builder::new()
                .name(format!("fs{number}"))
                .stack_size(STACK)
                .spawn(move || {
                    let prepared = prepare().and_then(|()| shared.enter());
                    let good = prepared.is_ok();
                    if good {
                        shared.lock().alive += 1;
                    }
                    let _ = sender.send(prepared);
                    drop(sender);
                    if good {
                        shared.run();
                    }
                })?;
        }
        drop(sender);
        for _ in 0..THREADS {
            // Every thread reports once, and does not wait before it does.
            receiver.recv().map_err(io::Error::other)??;
        }
        Ok(workers)
    }

    /// The file server.
    #[must_use]
    pub fn server(&self) -> &Server {
        &self.0.server
    }

    /// Serves the rings of `active`, whose kicks are not watched by anybody else.
    ///
    /// # Errors
    /// When a kick cannot be watched; nothing is served then.
    pub(super) fn activate(&self, active: Active) -> io::Result<()> {
        for (done, ring) in active.rings.iter().enumerate() {
            if let Err(error) = self.0.watch(ring.kick()) {
                active.rings.iter().take(done).for_each(|ring| {
                    self.0.unwatch(ring.kick());
                });
                return Err(error);
            }
        }
        let mut state = self.0.lock();
        state.number += 1;
        state.paused = false;
        state.session = Some(Session { active });
        drop(state);
        self.0.wake();
        Ok(())
    }

    /// Whether there are rings to serve.
    pub(super) fn is_active(&self) -> bool {
        self.0.lock().session.is_some()
    }

    /// Takes no more requests, and waits for those in flight.
    ///
    /// # Errors
    /// When they take too long; requests are taken again then.
    pub(super) fn quiesce(&self) -> io::Result<()> {
        let mut state = self.0.lock();
        state.paused = true;
        let mut state = self.0.drained(state);
        if state.in_flight > 0 {
            state.paused = false;
            drop(state);
            self.0.wake();
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }

    /// Goes on.
    pub(super) fn resume(&self) {
        self.0.lock().paused = false;
        self.0.wake();
    }

    /// Lets go of rings and guest memory. A request that hangs in the host's storage keeps the
    /// memory mapped until it ends, and is not answered.
    pub(super) fn reset(&self) {
        let mut state = self.0.lock();
        let session = state.session.take();
        state.paused = false;
        let state = self.0.drained(state);
        drop(state);
        for ring in session.iter().flat_map(|s| &s.active.rings) {
            self.0.unwatch(ring.kick());
        }
        self.0.server.clear();
    }

    /// The saved form of the rings.
    pub(super) fn save(&self) -> Vec<QueueState> {
        let state = self.0.lock();
        let session = state.session.as_ref();
        session.map(|s| s.active.save()).unwrap_or_default()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.stop = true;
        state.session = None;
        self.0.wake();
        let deadline = Instant::now() + DRAIN;
        while state.alive > 0 {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return;
            };
            let waited = self.0.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn watch(&self, fd: &EventFd) -> io::Result<()> {
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let event = EpollEvent::new(edge, 0);
        self.epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), event)
    }

    fn unwatch(&self, fd: &EventFd) {
        let event = EpollEvent::default();
        let _ = self
            .epoll
            .ctl(ControlOperation::Delete, fd.as_raw_fd(), event);
    }

    /// Wakes one thread.
    fn wake(&self) {
        // Fails only when the counter is full, and then a wake-up is pending.
        let _ = self.wake.write(1);
    }

    /// Waits for requests in flight, up to the limit.
    fn drained<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let deadline = Instant::now() + DRAIN;
        while state.in_flight > 0 {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                break;
            };
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state
    }

    /// The thread's own mask, and directory of descriptors, by whose names xattrs are reached.
    fn enter(&self) -> io::Result<()> {
        // SAFETY: no pointers; separates this thread's working directory and mask from the others'.
        if unsafe { libc::unshare(libc::CLONE_FS) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // The guest's kernel has applied the mask of its process already.
        rustix::process::umask(Mode::empty());
        rustix::process::fchdir(&self.server.descriptors)?;
        Ok(())
    }

    fn run(&self) {
        let mut scratch = Scratch::default();
        let mut events = [EpollEvent::default()];
        loop {
            match self.next() {
                Next::Job(job) => {
                    let (head, mem) = (job.chain.head_index(), job.mem);
                    let mut request = scratch.recycle();
                    let written = match request.chain.gather(job.chain, &*mem) {
                        Ok(_) => self.server.serve(&mut request),
                        Err(_) => {
                            self.server.metrics.malformed.add(1);
                            0
                        }
                    };
                    scratch = request.recycle();
                    self.complete(job.session, job.ring, head, written);
                }
                Next::Nothing => {
                    // Whatever wakes it, an error even, it looks at the rings.
                    let _ = self.epoll.wait(-1, &mut events);
                    self.lock().idle -= 1;
                }
                Next::Stop => break,
            }
        }
        self.lock().alive -= 1;
        self.changed.notify_all();
        // One after the other they hear of it.
        self.wake();
    }

    /// Takes a request. With `Nothing` the thread counts as idle.
    fn next(&self) -> Next {
        let mut state = self.lock();
        if state.stop {
            return Next::Stop;
        }
        let (number, paused, idle) = (state.number, state.paused, state.idle);
        let session = state.session.as_mut().filter(|_| !paused);
        let taken = session.and_then(|s| {
            let (ring, chain) = s.take()?;
            if idle > 0 && s.has_more() {
                self.wake();
            }
            Some(Job {
                session: number,
                ring,
                chain,
                mem: Arc::clone(&s.active.mem),
            })
        });
        match taken {
            Some(job) => {
                state.in_flight += 1;
                Next::Job(job)
            }
            None => {
                state.idle += 1;
                Next::Nothing
            }
        }
    }

    fn complete(&self, session: u64, ring: usize, head: u16, written: usize) {
        let mut state = self.lock();
        state.in_flight -= 1;
        if state.number == session
            && let Some(session) = state.session.as_mut()
        {
            session.give_back(ring, head, written);
        }
        if state.in_flight == 0 {
            self.changed.notify_all();
        }
    }
}

impl Session {
    /// The first request there is; forgetting, which frees, before all else (the queue of high
    /// priority is the first).
    fn take(&mut self) -> Option<(usize, DescriptorChain<Arc<GuestMemory>>)> {
        let mem = &self.active.mem;
        for (position, ring) in self.active.rings.iter_mut().enumerate() {
            let mut chain = ring.pop_held(mem);
            // Once more only: a ring with an invalid index would report chains for ever.
            if chain.is_none() && ring.enable_notification(mem) {
                chain = ring.pop_held(mem);
            }
            if let Some(chain) = chain {
                ring.disable_notification(mem);
                return Some((position, chain));
            }
        }
        None
    }

    fn has_more(&self) -> bool {
        self.active
            .rings
            .iter()
            .any(|ring| ring.waits(&self.active.mem))
    }

    fn give_back(&mut self, position: usize, head: u16, written: usize) {
        if let Some(ring) = self.active.rings.get_mut(position) {
            ring.push(&self.active.mem, head, u32::try_from(written).unwrap_or(0));
            ring.notify(&self.active.mem, self.active.interrupt.as_ref());
        }
    }
}
