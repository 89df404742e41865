//! A guest's side of a virtio device, for tests: rings in guest memory, kicks, interrupts, and
//! the real event loop in a thread. Not part of the VMM.

use std::fmt;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::event_loop::{EventLoop, EventSet, Handler, Registrar};
use crate::memory::GuestMemory;
use crate::poll::{poll, readable};
use crate::virtio::device::{Activation, ActiveQueue, Interrupt, QueueState, VirtioDevice};

/// Guest RAM of a test.
pub const RAM: usize = 16 << 20;
/// Where buffers of a test start.
pub const DATA: u64 = 0x10_0000;
/// How long a test waits for anything; the machine may be slow and busy.
pub const TIMEOUT: Duration = Duration::from_secs(60);

const WRITE: u16 = 2;
const NEXT: u16 = 1;
const EVENT_IDX: u32 = 29;

#[derive(Debug)]
struct TestInterrupt(Vec<EventFd>);

impl Interrupt for TestInterrupt {
    fn signal_queue(&self, index: u16) {
        self.0[usize::from(index)].write(1).unwrap();
    }
    fn signal_config(&self) {}
    fn queue_eventfd(&self, index: u16) -> Option<EventFd> {
        self.0[usize::from(index)].try_clone().ok()
    }
}

struct Glue<D>(Arc<Mutex<D>>);

impl<D: VirtioDevice> Handler for Glue<D> {
    fn on_event(&self, token: u32, events: EventSet) {
        self.0.lock().unwrap().on_event(token, events);
    }
}

/// The driver's side of one queue.
pub struct DriverQueue {
    mem: GuestMemory,
    state: QueueState,
    kick: EventFd,
    call: EventFd,
    avail: u16,
    /// Chains offered up to the last kick.
    kicked: u16,
    used: u16,
    free: Vec<u16>,
}

impl DriverQueue {
    /// Offers one chain of (address, length, device-writable) and returns its head.
    pub fn offer(&mut self, pieces: &[(u64, u32, bool)]) -> u16 {
        let at = self.free.len() - pieces.len();
        let slots = self.free.split_off(at);
        for (i, (addr, len, write)) in pieces.iter().enumerate() {
            let next = slots.get(i + 1).copied();
            let flags = if *write { WRITE } else { 0 } | if next.is_some() { NEXT } else { 0 };
            let mut raw = [0u8; 16];
            raw[..8].copy_from_slice(&addr.to_le_bytes());
            raw[8..12].copy_from_slice(&len.to_le_bytes());
            raw[12..14].copy_from_slice(&flags.to_le_bytes());
            raw[14..].copy_from_slice(&next.unwrap_or(0).to_le_bytes());
            let place = self.state.desc_table + 16 * u64::from(slots[i]);
            self.mem.write_slice(&raw, GuestAddress(place)).unwrap();
        }
        let slot = u64::from(self.avail % self.state.size);
        self.mem
            .write_obj(slots[0], GuestAddress(self.state.avail_ring + 4 + 2 * slot))
            .unwrap();
        self.avail = self.avail.wrapping_add(1);
        fence(Ordering::SeqCst);
        self.mem
            .store(
                self.avail,
                GuestAddress(self.state.avail_ring + 2),
                Ordering::Release,
            )
            .unwrap();
        slots[0]
    }

    /// Tells the device.
    pub fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// Tells the device when it asked to be told of what was offered (virtio 1.2 §2.7.10), as Linux
    /// does with EVENT_IDX.
    pub fn kick_if_asked(&mut self) {
        fence(Ordering::SeqCst);
        let at = self.state.used_ring + 4 + 8 * u64::from(self.state.size);
        let event: u16 = self.mem.load(GuestAddress(at), Ordering::Acquire).unwrap();
        let since = self.avail.wrapping_sub(self.kicked);
        if self.avail.wrapping_sub(event).wrapping_sub(1) < since {
            self.kick();
        }
        self.kicked = self.avail;
    }

    /// Goes on as the driver of `before`, whose memory this one has.
    pub fn take_over(&mut self, before: &DriverQueue) {
        (self.avail, self.kicked) = (before.avail, before.kicked);
        self.used = before.used;
        self.free.clone_from(&before.free);
    }

    /// A chain that came back: its head and the length written.
    pub fn take(&mut self) -> Option<(u16, u32)> {
        let idx: u16 = self
            .mem
            .load(GuestAddress(self.state.used_ring + 2), Ordering::Acquire)
            .unwrap();
        if idx == self.used {
            return None;
        }
        let slot = u64::from(self.used % self.state.size);
        let at = self.state.used_ring + 4 + 8 * slot;
        let head: u32 = self.mem.read_obj(GuestAddress(at)).unwrap();
        let len: u32 = self.mem.read_obj(GuestAddress(at + 4)).unwrap();
        self.used = self.used.wrapping_add(1);
        let head = u16::try_from(head).unwrap();
        self.release(head);
        Some((head, len))
    }

    fn release(&mut self, head: u16) {
        let mut at = head;
        loop {
            self.free.push(at);
            let place = self.state.desc_table + 16 * u64::from(at);
            let flags: u16 = self.mem.read_obj(GuestAddress(place + 12)).unwrap();
            if flags & NEXT == 0 {
                return;
            }
            at = self.mem.read_obj(GuestAddress(place + 14)).unwrap();
        }
    }

    /// Waits for the interrupt, as a driver does: asks for it, looks once more, sleeps.
    pub fn wait(&mut self) -> (u16, u32) {
        self.wait_until(Instant::now() + TIMEOUT)
            .expect("the device did not answer")
    }

    /// As `wait`, up to a deadline.
    pub fn wait_until(&mut self, deadline: Instant) -> Option<(u16, u32)> {
        loop {
            if let Some(done) = self.take() {
                return Some(done);
            }
            // used_event: interrupt me at the next one.
            let event = self.state.avail_ring + 4 + 2 * u64::from(self.state.size);
            self.mem
                .store(self.used, GuestAddress(event), Ordering::SeqCst)
                .unwrap();
            fence(Ordering::SeqCst);
            if let Some(done) = self.take() {
                return Some(done);
            }
            if Instant::now() >= deadline {
                return None;
            }
            let call = std::os::fd::AsRawFd::as_raw_fd(&self.call);
            poll(&mut [readable(call)], Some(deadline)).unwrap();
            let _ = self.call.read();
        }
    }

    /// Descriptors not in use.
    pub fn room(&self) -> usize {
        self.free.len()
    }
}

impl fmt::Debug for DriverQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DriverQueue").finish_non_exhaustive()
    }
}

/// A device in a machine of its own.
pub struct Machine<D: VirtioDevice + 'static> {
    /// Guest RAM.
    pub mem: GuestMemory,
    device: Arc<Mutex<D>>,
    looper: EventLoop,
    registrar: Registrar,
    thread: Option<JoinHandle<()>>,
}

impl<D: VirtioDevice + 'static> Machine<D> {
    /// Starts the event loop; the device is not active yet.
    pub fn new(device: D) -> Self {
        let mem = GuestMemory::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
        Machine::with_memory(device, mem)
    }

    /// As `new`, on memory that is there.
    pub fn with_memory(device: D, mem: GuestMemory) -> Self {
        let looper = EventLoop::new().unwrap();
        let registrar = looper.registrar();
        let device = Arc::new(Mutex::new(device));
        looper.set_handler(&registrar, Arc::new(Glue(Arc::clone(&device))));
        let runner = looper.clone();
        let thread = std::thread::spawn(move || runner.run().unwrap());
        Machine {
            mem,
            device,
            looper,
            registrar,
            thread: Some(thread),
        }
    }

    /// The device.
    pub fn device(&self) -> MutexGuard<'_, D> {
        self.device.lock().unwrap()
    }

    /// Activates with all features offered, fresh queues, EVENT_IDX as told.
    pub fn activate(&self, event_idx: bool) -> Vec<DriverQueue> {
        let features = self.device().device_features();
        self.activate_with(features, event_idx)
    }

    /// Activates with these device-specific features.
    pub fn activate_with(&self, features: u64, event_idx: bool) -> Vec<DriverQueue> {
        let sizes = self.device().queue_max_sizes().to_vec();
        let states: Vec<_> = sizes
            .iter()
            .enumerate()
            .map(|(i, size)| {
                let base = 0x4000 * (i as u64 + 1);
                QueueState {
                    index: u16::try_from(i).unwrap(),
                    max_size: *size,
                    // What the layout above has room for.
                    size: (*size).min(256),
                    desc_table: base,
                    avail_ring: base + 0x1000,
                    used_ring: base + 0x2000,
                    event_idx,
                    next_avail: 0,
                    next_used: 0,
                }
            })
            .collect();
        for s in &states {
            for at in [s.avail_ring, s.used_ring] {
                self.mem
                    .write_slice(&[0u8; 0x1000], GuestAddress(at))
                    .unwrap();
            }
        }
        self.activate_at(&states, features)
    }

    /// Activates with rings that stand somewhere (a restore), and kicks each once, as the
    /// transport does.
    pub fn activate_at(&self, states: &[QueueState], features: u64) -> Vec<DriverQueue> {
        let event_idx = states.iter().any(|s| s.event_idx);
        let make = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let calls: Vec<_> = states.iter().map(|_| make()).collect();
        let mut drivers = Vec::new();
        let mut queues = Vec::new();
        for (state, call) in states.iter().zip(&calls) {
            let kick = make();
            kick.write(1).unwrap();
            drivers.push(DriverQueue {
                mem: self.mem.clone(),
                state: *state,
                kick: kick.try_clone().unwrap(),
                call: call.try_clone().unwrap(),
                avail: state.next_avail,
                kicked: state.next_avail,
                used: state.next_used,
                free: (0..state.size).collect(),
            });
            queues.push(ActiveQueue {
                index: state.index,
                queue: state.to_queue().unwrap(),
                kick,
            });
        }
        let transport = 1 << 32 | u64::from(event_idx) << EVENT_IDX;
        self.device()
            .activate(Activation {
                mem: self.mem.clone(),
                features: features | transport,
                queues,
                interrupt: Arc::new(TestInterrupt(calls)),
                events: self.registrar.clone(),
            })
            .unwrap();
        drivers
    }
}

impl<D: VirtioDevice + 'static> Drop for Machine<D> {
    fn drop(&mut self) {
        self.looper.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
