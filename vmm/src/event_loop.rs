//! The I/O thread's event loop: epoll, with one handler per device.
//!
//! A handler is registered once and gets a [`Registrar`], with which it adds and removes
//! descriptors under tokens of its own, from any thread. The loop calls
//! [`Handler::on_event`] with the token. Nothing here knows what a device is.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent};
use vmm_sys_util::eventfd::EventFd;

use crate::sync::lock;

pub use vmm_sys_util::epoll::EventSet;

/// How many events one turn of the loop takes.
const BATCH: usize = 32;

/// The handler id of the loop's own wake-up descriptor.
const WAKE: u64 = 0;

/// Why the loop could not do something.
#[derive(Debug, thiserror::Error)]
pub enum EventLoopError {
    /// epoll could not be set up.
    #[error("creating the event loop: {0}")]
    Create(#[source] io::Error),
    /// Waiting failed.
    #[error("waiting for events: {0}")]
    Wait(#[source] io::Error),
}

/// Something the loop calls.
pub trait Handler: Send + Sync {
    /// The descriptor registered under `token` is ready.
    fn on_event(&self, token: u32, events: EventSet);
}

type Handlers = HashMap<u32, Arc<dyn Handler>>;

struct Shared {
    epoll: Epoll,
    wake: EventFd,
    handlers: Mutex<Handlers>,
    next: AtomicU32,
}

impl Shared {
    fn handlers(&self) -> MutexGuard<'_, Handlers> {
        lock(&self.handlers)
    }
}

/// A handle on the loop; clones share it.
#[derive(Clone)]
pub struct EventLoop(Arc<Shared>);

impl fmt::Debug for EventLoop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventLoop")
            .field("handlers", &self.0.handlers().len())
            .finish()
    }
}

impl EventLoop {
    /// A loop that does nothing until [`EventLoop::run`] is called.
    ///
    /// # Errors
    /// When the kernel gives no descriptors.
    pub fn new() -> Result<Self, EventLoopError> {
        let epoll = Epoll::new().map_err(EventLoopError::Create)?;
        let wake =
            EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(EventLoopError::Create)?;
        epoll
            .ctl(
                ControlOperation::Add,
                wake.as_raw_fd(),
                EpollEvent::new(EventSet::IN, WAKE),
            )
            .map_err(EventLoopError::Create)?;
        Ok(EventLoop(Arc::new(Shared {
            epoll,
            wake,
            handlers: Mutex::new(HashMap::new()),
            next: AtomicU32::new(1),
        })))
    }

    /// A registrar for a handler that is named later (see [`EventLoop::set_handler`]).
    #[must_use]
    pub fn registrar(&self) -> Registrar {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        Registrar {
            shared: Arc::clone(&self.0),
            id,
        }
    }

    /// Sends the events of `registrar`'s descriptors to `handler`.
    pub fn set_handler(&self, registrar: &Registrar, handler: Arc<dyn Handler>) {
        self.0.handlers().insert(registrar.id, handler);
    }

    /// Forgets the handler of `registrar`. Its descriptors must be removed by their owner.
    pub fn remove_handler(&self, registrar: &Registrar) {
        self.0.handlers().remove(&registrar.id);
    }

    /// Makes [`EventLoop::run`] return.
    pub fn stop(&self) {
        // Writing can only fail when the counter is full, and then the loop wakes anyway.
        let _ = self.0.wake.write(1);
    }

    /// Runs on the calling thread until [`EventLoop::stop`].
    ///
    /// # Errors
    /// When epoll itself fails.
    pub fn run(&self) -> Result<(), EventLoopError> {
        let mut batch = [EpollEvent::default(); BATCH];
        loop {
            let n = match self.0.epoll.wait(-1, &mut batch) {
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(EventLoopError::Wait(e)),
            };
            for event in batch.iter().take(n) {
                if event.data() == WAKE {
                    return Ok(());
                }
                let (id, token) = unpack(event.data());
                // Not held during the call: a handler may register and remove.
                let handler = self.0.handlers().get(&id).map(Arc::clone);
                if let Some(handler) = handler {
                    handler.on_event(token, event.event_set());
                }
            }
        }
    }
}

fn pack(id: u32, token: u32) -> u64 {
    u64::from(id) << 32 | u64::from(token)
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "the two halves of the word, on purpose"
)]
fn unpack(data: u64) -> (u32, u32) {
    ((data >> 32) as u32, data as u32)
}

/// Adds and removes the descriptors of one handler. Thread-safe, clones are equal.
#[derive(Clone)]
pub struct Registrar {
    shared: Arc<Shared>,
    id: u32,
}

impl fmt::Debug for Registrar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registrar").field("id", &self.id).finish()
    }
}

impl Registrar {
    /// Watches `fd` (level-triggered unless `events` has EDGE_TRIGGERED).
    ///
    /// # Errors
    /// The kernel's: already watched, or a descriptor that cannot be (a regular file).
    pub fn add(&self, fd: RawFd, token: u32, events: EventSet) -> io::Result<()> {
        self.shared.epoll.ctl(
            ControlOperation::Add,
            fd,
            EpollEvent::new(events, pack(self.id, token)),
        )
    }

    /// Changes what is watched for on `fd`; an empty set silences it (errors still come).
    ///
    /// # Errors
    /// When `fd` is not watched.
    pub fn modify(&self, fd: RawFd, token: u32, events: EventSet) -> io::Result<()> {
        self.shared.epoll.ctl(
            ControlOperation::Modify,
            fd,
            EpollEvent::new(events, pack(self.id, token)),
        )
    }

    /// Stops watching `fd`. One event already taken from the kernel may still be delivered.
    ///
    /// # Errors
    /// When `fd` is not watched.
    pub fn remove(&self, fd: RawFd) -> io::Result<()> {
        self.shared
            .epoll
            .ctl(ControlOperation::Delete, fd, EpollEvent::default())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    struct Report(Mutex<mpsc::Sender<u32>>);
    impl Handler for Report {
        fn on_event(&self, token: u32, _events: EventSet) {
            let _ = self.0.lock().unwrap().send(token);
        }
    }

    #[test]
    fn events_reach_their_handler_with_their_token_until_removed() {
        let looper = EventLoop::new().unwrap();
        let thread = {
            let looper = looper.clone();
            std::thread::spawn(move || looper.run())
        };
        let (tx, rx) = mpsc::channel();
        let registrar = looper.registrar();
        looper.set_handler(&registrar, Arc::new(Report(Mutex::new(tx))));
        let fd = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        registrar.add(fd.as_raw_fd(), 7, edge).unwrap();
        fd.write(1).unwrap();
        assert_eq!(rx.recv_timeout(Duration::from_secs(5)).unwrap(), 7);
        registrar.modify(fd.as_raw_fd(), 0xffff_fffe, edge).unwrap();
        assert_eq!(
            rx.recv_timeout(Duration::from_secs(5)).unwrap(),
            0xffff_fffe
        );
        registrar.remove(fd.as_raw_fd()).unwrap();
        looper.remove_handler(&registrar);
        looper.stop();
        thread.join().unwrap().unwrap();
        assert!(rx.try_recv().is_err());
    }

    #[test]
    fn events_reach_the_handler_they_are_for() {
        let looper = EventLoop::new().unwrap();
        let (tx, rx) = mpsc::channel();
        let fds: Vec<_> = (0..2u32)
            .map(|i| {
                let registrar = looper.registrar();
                let tx = tx.clone();
                struct Only(Mutex<mpsc::Sender<u32>>, u32);
                impl Handler for Only {
                    fn on_event(&self, token: u32, _events: EventSet) {
                        let _ = self.0.lock().unwrap().send(self.1 * 100 + token);
                    }
                }
                looper.set_handler(&registrar, Arc::new(Only(Mutex::new(tx), i)));
                let fd = EventFd::new(libc::EFD_NONBLOCK).unwrap();
                registrar
                    .add(fd.as_raw_fd(), 5, EventSet::IN | EventSet::EDGE_TRIGGERED)
                    .unwrap();
                fd
            })
            .collect();
        let thread = {
            let looper = looper.clone();
            std::thread::spawn(move || looper.run())
        };
        fds[1].write(1).unwrap();
        assert_eq!(rx.recv_timeout(Duration::from_secs(5)).unwrap(), 105);
        fds[0].write(1).unwrap();
        assert_eq!(rx.recv_timeout(Duration::from_secs(5)).unwrap(), 5);
        looper.stop();
        thread.join().unwrap().unwrap();
    }
}
