//! The common configuration structure (virtio 1.2 §4.1.4.3): what the driver has set so far.
//!
//! Pure state: reading and writing registers has no effect outside, except for what
//! [`Common::write`] returns.

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_queue::Queue;

use super::interrupt::PciInterrupt;

/// Length of the structure.
pub const SIZE: u64 = 0x40;

// Device status bits (virtio 1.2 §2.1).
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
/// The device gave up (virtio 1.2 §2.1).
pub const NEEDS_RESET: u8 = 0x40;
const FAILED: u8 = 0x80;

/// What a write asks the transport to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing beyond the state kept here.
    None,
    /// The driver reset the device.
    Reset,
    /// The driver is ready: activate.
    Activate,
}

/// What the driver said of one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueConfig {
    /// The greatest size the device offers.
    pub max_size: u16,
    /// The size chosen.
    pub size: u16,
    /// Whether it is enabled.
    pub enabled: bool,
    /// Descriptor table.
    pub desc: u64,
    /// Available ring.
    pub driver: u64,
    /// Used ring.
    pub device: u64,
}

impl QueueConfig {
    fn new(max_size: u16) -> Self {
        QueueConfig {
            max_size,
            size: max_size,
            enabled: false,
            desc: 0,
            driver: 0,
            device: 0,
        }
    }

    /// The ring, or nothing when it cannot be one.
    pub fn to_queue(self, event_idx: bool) -> Result<Queue, virtio_queue::Error> {
        Queue::try_from(virtio_queue::QueueState {
            max_size: self.max_size,
            next_avail: 0,
            next_used: 0,
            event_idx_enabled: event_idx,
            size: self.size,
            ready: true,
            desc_table: self.desc,
            avail_ring: self.driver,
            used_ring: self.device,
        })
    }
}

/// The registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Common {
    /// What is offered.
    pub offered: u64,
    /// What the driver took.
    pub acked: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    status: u8,
    queue_select: u16,
    /// The queues.
    pub queues: Vec<QueueConfig>,
}

impl Common {
    /// As after a reset.
    #[must_use]
    pub fn new(offered: u64, max_sizes: &[u16]) -> Self {
        Common {
            offered,
            acked: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            status: 0,
            queue_select: 0,
            queues: max_sizes.iter().map(|s| QueueConfig::new(*s)).collect(),
        }
    }

    /// The device status.
    #[must_use]
    pub fn status(&self) -> u8 {
        self.status
    }

    /// Whether the driver runs.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.status & DRIVER_OK != 0
    }

    /// The device does nothing more until it is reset.
    pub fn set_needs_reset(&mut self) {
        self.status |= NEEDS_RESET;
    }

    /// Back to the state after power-on.
    pub fn reset(&mut self) {
        let max_sizes: Vec<u16> = self.queues.iter().map(|q| q.max_size).collect();
        *self = Common::new(self.offered, &max_sizes);
    }

    /// Reads a register; `data` is zeroed. Accesses that are not one whole field, or half of a
    /// 64-bit field, read zero (§4.1.3.1 tells drivers the widths).
    pub fn read(&self, offset: u64, data: &mut [u8], interrupt: &PciInterrupt) {
        let queue = self.queues.get(usize::from(self.queue_select));
        let field = |f: fn(&QueueConfig) -> u64| queue.map_or(0, f);
        let value: u64 = match (offset, data.len()) {
            (0x00, 4) => self.device_feature_select.into(),
            (0x04, 4) => half(self.offered, self.device_feature_select),
            (0x08, 4) => self.driver_feature_select.into(),
            (0x0c, 4) => half(self.acked, self.driver_feature_select),
            (0x10, 2) => interrupt.config_vector().into(),
            (0x12, 2) => self.queues.len() as u64,
            (0x14, 1) => self.status.into(),
            (0x15, 1) => interrupt.generation().into(),
            (0x16, 2) => self.queue_select.into(),
            (0x18, 2) => field(|q| q.size.into()),
            (0x1a, 2) => interrupt.queue_vector(self.queue_select).into(),
            (0x1c, 2) => field(|q| q.enabled.into()),
            // queue_notify_off: queue i rings at i times the multiplier.
            (0x1e, 2) => self.queue_select.into(),
            (0x20, 4 | 8) => field(|q| q.desc),
            (0x24, 4) => field(|q| q.desc >> 32),
            (0x28, 4 | 8) => field(|q| q.driver),
            (0x2c, 4) => field(|q| q.driver >> 32),
            (0x30, 4 | 8) => field(|q| q.device),
            (0x34, 4) => field(|q| q.device >> 32),
            _ => 0,
        };
        for (byte, source) in data.iter_mut().zip(value.to_le_bytes()) {
            *byte = source;
        }
    }

    /// Writes a register.
    pub fn write(&mut self, offset: u64, data: &[u8], interrupt: &PciInterrupt) -> Action {
        let mut bytes = [0u8; 8];
        for (target, byte) in bytes.iter_mut().zip(data) {
            *target = *byte;
        }
        let value = u64::from_le_bytes(bytes);
        let word = u16::from_le_bytes([bytes[0], bytes[1]]);
        let dword = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        match (offset, data.len()) {
            (0x00, 4) => self.device_feature_select = dword,
            (0x08, 4) => self.driver_feature_select = dword,
            (0x0c, 4) => self.ack(dword),
            (0x10, 2) => interrupt.set_config_vector(word),
            (0x14, 1) => return self.set_status(bytes[0]),
            (0x16, 2) => self.queue_select = word,
            (0x1a, 2) => interrupt.set_queue_vector(self.queue_select, word),
            (0x18, 2) => {
                self.set_queue(|q| {
                    // A size that is not a power of two, or too large, keeps the old one.
                    if word.is_power_of_two() && word <= q.max_size {
                        q.size = word;
                    }
                });
            }
            // Writing zero is not allowed to a driver (§4.1.4.3.2) and does nothing.
            (0x1c, 2) if word == 1 => self.set_queue(|q| q.enabled = true),
            (0x20, 4) => self.set_queue(|q| set_low(&mut q.desc, dword)),
            (0x24, 4) => self.set_queue(|q| set_high(&mut q.desc, dword)),
            (0x20, 8) => self.set_queue(|q| q.desc = value),
            (0x28, 4) => self.set_queue(|q| set_low(&mut q.driver, dword)),
            (0x2c, 4) => self.set_queue(|q| set_high(&mut q.driver, dword)),
            (0x28, 8) => self.set_queue(|q| q.driver = value),
            (0x30, 4) => self.set_queue(|q| set_low(&mut q.device, dword)),
            (0x34, 4) => self.set_queue(|q| set_high(&mut q.device, dword)),
            (0x30, 8) => self.set_queue(|q| q.device = value),
            _ => {}
        }
        Action::None
    }

    /// Features may be taken until FEATURES_OK (§3.1.1).
    fn ack(&mut self, value: u32) {
        if self.status & FEATURES_OK != 0 {
            return;
        }
        match self.driver_feature_select {
            0 => set_low(&mut self.acked, value),
            1 => set_high(&mut self.acked, value),
            _ => {}
        }
    }

    /// A queue may be changed until it is enabled (§4.1.4.3.2), and not while running.
    fn set_queue(&mut self, change: impl FnOnce(&mut QueueConfig)) {
        if self.is_active() {
            return;
        }
        if let Some(queue) = self.queues.get_mut(usize::from(self.queue_select))
            && !queue.enabled
        {
            change(queue);
        }
    }

    fn set_status(&mut self, value: u8) -> Action {
        if value == 0 {
            return Action::Reset;
        }
        let mut new = value & !NEEDS_RESET | self.status;
        if new & FEATURES_OK != 0 && self.status & FEATURES_OK == 0 {
            // The bit stays clear when the choice cannot be (§3.1.1 step 6). A driver without
            // VERSION_1 is a legacy one, which this device does not serve.
            let fits = self.acked & !self.offered == 0 && self.acked >> VIRTIO_F_VERSION_1 & 1 == 1;
            if !fits {
                new &= !FEATURES_OK;
            }
        }
        let starts = new & DRIVER_OK != 0
            && self.status & DRIVER_OK == 0
            && new & FEATURES_OK != 0
            && new & (FAILED | NEEDS_RESET) == 0;
        if !starts && self.status & DRIVER_OK == 0 {
            new &= !DRIVER_OK;
        }
        self.status = new;
        if starts {
            Action::Activate
        } else {
            Action::None
        }
    }
}

fn half(value: u64, select: u32) -> u64 {
    match select {
        0 => value & 0xffff_ffff,
        1 => value >> 32,
        _ => 0,
    }
}

fn set_low(target: &mut u64, value: u32) {
    *target = *target & !0xffff_ffff | u64::from(value);
}

fn set_high(target: &mut u64, value: u32) {
    *target = *target & 0xffff_ffff | u64::from(value) << 32;
}
