//! From a device's "this queue" to the vector the driver chose.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use vmm_sys_util::eventfd::EventFd;

use crate::pci::msix::NO_VECTOR;
use crate::virtio::device::Interrupt;

/// The interrupt side of one function. Lock-free: signalled from the I/O thread while vCPUs
/// write the tables.
#[derive(Debug)]
pub struct PciInterrupt {
    fds: Arc<Vec<EventFd>>,
    config: AtomicU16,
    queues: Vec<AtomicU16>,
    generation: AtomicU8,
}

impl PciInterrupt {
    /// No vector chosen for anything yet.
    #[must_use]
    pub fn new(fds: Arc<Vec<EventFd>>, queues: usize) -> Self {
        PciInterrupt {
            fds,
            config: AtomicU16::new(NO_VECTOR),
            queues: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            generation: AtomicU8::new(0),
        }
    }

    /// The vector of configuration changes.
    #[must_use]
    pub fn config_vector(&self) -> u16 {
        self.config.load(Ordering::Acquire)
    }

    /// The driver chooses it; one that does not exist becomes none (virtio 1.2 §4.1.5.1.2.1).
    pub fn set_config_vector(&self, vector: u16) {
        self.config.store(self.existing(vector), Ordering::Release);
    }

    /// The vector of queue `index`.
    #[must_use]
    pub fn queue_vector(&self, index: u16) -> u16 {
        self.queues
            .get(usize::from(index))
            .map_or(NO_VECTOR, |v| v.load(Ordering::Acquire))
    }

    /// The driver chooses it.
    pub fn set_queue_vector(&self, index: u16, vector: u16) {
        if let Some(slot) = self.queues.get(usize::from(index)) {
            slot.store(self.existing(vector), Ordering::Release);
        }
    }

    /// Changes whenever the device's configuration changed (virtio 1.2 §4.1.4.3.1).
    #[must_use]
    pub fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    /// Back to no vectors.
    pub fn reset(&self) {
        self.set_config_vector(NO_VECTOR);
        for slot in &self.queues {
            slot.store(NO_VECTOR, Ordering::Release);
        }
    }

    fn existing(&self, vector: u16) -> u16 {
        if usize::from(vector) < self.fds.len() {
            vector
        } else {
            NO_VECTOR
        }
    }

    fn signal(&self, vector: u16) {
        if let Some(fd) = self.fds.get(usize::from(vector)) {
            // Fails only when the counter is full, and then an interrupt is pending anyway.
            let _ = fd.write(1);
        }
    }
}

impl Interrupt for PciInterrupt {
    fn signal_queue(&self, index: u16) {
        self.signal(self.queue_vector(index));
    }

    fn signal_config(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.signal(self.config_vector());
    }

    fn queue_eventfd(&self, index: u16) -> Option<EventFd> {
        let fd = self.fds.get(usize::from(self.queue_vector(index)))?;
        fd.try_clone().ok()
    }
}
