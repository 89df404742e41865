//! The trait every virtio device implements, and what passes between a device and its transport.
//!
//! A device knows nothing of PCI and of KVM. It is made from live resources (descriptors) and its
//! configuration, sits idle until the driver sets DRIVER_OK, is then activated with its queues,
//! and does all its work on the I/O thread, which calls [`VirtioDevice::on_event`] for the
//! descriptors the device registered. The transport (feature negotiation, queue addresses,
//! interrupt vectors) lives in `virtio::pci`; the loop in `crate::event_loop`.
//!
//! A device is always behind one mutex: vCPU threads reach it for configuration space,
//! activation and reset, the I/O thread for events, the main thread for pause and snapshots. No
//! method may wait for the guest, nor for a peer on the host without a deadline.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use crate::event_loop::{EventSet, Registrar};
use crate::memory::GuestMemory;

/// The most queues a device may have (the transport's notify region has room for this many).
pub const MAX_QUEUES: usize = 32;

/// Why a device could not do what the transport asked of it.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A call came in a state where it has no meaning.
    #[error("device {device}: {attempted} while it is {state}")]
    WrongState {
        /// The device's id.
        device: String,
        /// What was asked of it.
        attempted: &'static str,
        /// The state it was in.
        state: &'static str,
    },
    /// The driver set up something the device cannot work with.
    #[error("device {device}: the guest's driver set it up wrongly: {reason}")]
    BadDriver {
        /// The device's id.
        device: String,
        /// What was wrong.
        reason: String,
    },
    /// A system call failed.
    #[error("device {device}: {attempted}: {source}")]
    Io {
        /// The device's id.
        device: String,
        /// What was attempted.
        attempted: &'static str,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A saved form does not fit the device it is given to.
    #[error("device {device}: its saved form does not fit: {reason}")]
    BadSavedForm {
        /// The device's id.
        device: String,
        /// What does not fit.
        reason: String,
    },
    /// The device's own error, kept typed as the source.
    #[error("device {device}: {source}")]
    Device {
        /// The device's id.
        device: String,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl DeviceError {
    /// That `device` was to be saved while it runs.
    #[must_use]
    pub fn not_quiesced(device: &str) -> Self {
        DeviceError::WrongState {
            device: device.to_owned(),
            attempted: "saving",
            state: "running",
        }
    }
}

/// How a device notifies the driver. Never blocks.
///
/// Each MSI-X vector is an eventfd that KVM turns into an interrupt; a masked vector keeps the
/// event in the eventfd until it is unmasked, so a signal is never lost.
pub trait Interrupt: Send + Sync + fmt::Debug {
    /// Used buffers were added to queue `index`. Devices ask `needs_notification` first.
    fn signal_queue(&self, index: u16);
    /// The device's configuration changed (virtio 1.2 §2.3).
    fn signal_config(&self);
    /// The eventfd behind queue `index`, for kernel back ends (vhost's "call"); `None` when the
    /// driver gave the queue no vector. Stays valid until the device is reset.
    fn queue_eventfd(&self, index: u16) -> Option<EventFd>;
}

/// One queue handed to a device.
#[derive(Debug)]
pub struct ActiveQueue {
    /// The index the driver knows it by (virtio 1.2 §4.1.4.3 queue_select). Queues the driver
    /// left disabled are not handed over, so indices may have gaps.
    pub index: u16,
    /// The ring, already checked against guest memory; the EVENT_IDX flag is set as negotiated.
    pub queue: Queue,
    /// Becomes readable when the driver kicks. Register it with [`Activation::events`]; read it
    /// in `on_event`. It is non-blocking.
    pub kick: EventFd,
}

/// Everything a device needs to run, given to it at DRIVER_OK or at a restore.
#[derive(Debug)]
pub struct Activation {
    /// Guest RAM.
    pub mem: GuestMemory,
    /// All feature bits both sides agreed on, the transport's own included.
    pub features: u64,
    /// The enabled queues, in index order.
    pub queues: Vec<ActiveQueue>,
    /// How to interrupt the driver.
    pub interrupt: Arc<dyn Interrupt>,
    /// Where to register descriptors for `on_event`.
    pub events: Registrar,
}

impl Activation {
    /// Whether feature bit `bit` was negotiated.
    #[must_use]
    pub fn has_feature(&self, bit: u32) -> bool {
        self.features.checked_shr(bit).unwrap_or(0) & 1 == 1
    }
}

/// A virtio device, as its transport sees it.
///
/// Invariants a device keeps:
/// - Before `activate` and after `reset` it touches no guest memory and has nothing registered.
/// - Between `quiesce` and `resume` nothing of it (no thread, no kernel back end, no in-flight
///   I/O) touches guest memory or changes what `save` returns; events that come meanwhile are
///   either left unread (they stay readable, so unregister or mask them) or remembered.
/// - `save` is called only while quiesced. `activate` with a restored device and the saved queue
///   states continues exactly there. The transport kicks every queue once and interrupts once
///   per queue after a restore, so neither kick nor interrupt counters need saving.
/// - An event may be delivered once more after its descriptor was unregistered; it is ignored.
/// - What the guest wrote is never trusted, and never makes it panic.
pub trait VirtioDevice: Send + fmt::Debug {
    /// Stable name: the id in the configuration. Snapshots match devices by it.
    fn id(&self) -> &str;

    /// The device type (virtio 1.2 §5).
    fn device_type(&self) -> u32;

    /// One entry per queue: its greatest size, a power of two. At most [`MAX_QUEUES`].
    fn queue_max_sizes(&self) -> &[u16];

    /// The device-specific features offered. The transport adds VERSION_1, INDIRECT_DESC and
    /// EVENT_IDX, and masks what the driver writes with the offer.
    fn device_features(&self) -> u64;

    /// Configuration space, as the driver sees it (little-endian).
    fn config_as_bytes(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&[])
    }

    /// Reads configuration space. Bytes beyond its end read as zero; `data` is zeroed by the
    /// caller.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let space = self.config_as_bytes();
        for (to, from) in data.iter_mut().zip(space.iter().skip(offset)) {
            *to = *from;
        }
    }

    /// Writes configuration space; unwritable bytes are ignored.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// DRIVER_OK: start working. On an error the transport sets DEVICE_NEEDS_RESET and the device
    /// must be as after `reset`.
    ///
    /// # Errors
    /// Whatever keeps the device from running with these queues.
    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError>;

    /// A registered descriptor is ready: `token` is what was registered. On the I/O thread.
    fn on_event(&mut self, token: u32, events: EventSet);

    /// Stops touching guest memory: finishes or parks requests in flight. A no-op for a device
    /// that is not active, or already quiesced.
    ///
    /// # Errors
    /// When in-flight work cannot be brought to a stop in bounded time.
    fn quiesce(&mut self) -> Result<(), DeviceError>;

    /// Undoes `quiesce`; looks at its queues again, as kicks may have been missed.
    ///
    /// # Errors
    /// When a back end cannot be started again.
    fn resume(&mut self) -> Result<(), DeviceError>;

    /// Back to the state before `activate`; waits for nothing the guest controls.
    fn reset(&mut self);

    /// The saved form, while quiesced (or never activated).
    ///
    /// # Errors
    /// When the state cannot be captured.
    fn save(&self) -> Result<SavedDevice, DeviceError>;

    /// Counters since the start, for the metrics request.
    fn metrics(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
}

/// What a device saves. Its resources (descriptors) are named anew at a restore; the device's
/// constructor for a restore takes them and `state`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedDevice {
    /// The device's own part. Carries its own version number.
    pub state: serde_json::Value,
    /// Rings of an active device in index order, empty when it is not active.
    pub queues: Vec<QueueState>,
}

impl SavedDevice {
    /// The saved form of `device`: its own part, and its rings.
    ///
    /// # Errors
    /// When `state` has no JSON form.
    pub fn new(
        device: &str,
        state: &impl Serialize,
        queues: Vec<QueueState>,
    ) -> Result<Self, DeviceError> {
        let state = serde_json::to_value(state).map_err(|e| DeviceError::Device {
            device: device.to_owned(),
            source: Box::new(e),
        })?;
        Ok(SavedDevice { state, queues })
    }
}

/// Reads a device's own part of its saved form, which must be of the `known` version.
///
/// # Errors
/// What is wrong with it.
pub fn read_saved<T: serde::de::DeserializeOwned>(
    state: &serde_json::Value,
    known: u32,
    version: impl Fn(&T) -> u32,
) -> Result<T, String> {
    let saved: T = serde_json::from_value(state.clone()).map_err(|e| e.to_string())?;
    match version(&saved) {
        version if version == known => Ok(saved),
        version => Err(format!("version {version} (this VMM reads {known})")),
    }
}

/// The saved form of one ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueState {
    /// The queue's index at the transport.
    pub index: u16,
    /// The greatest size the device offers.
    pub max_size: u16,
    /// The size the driver chose.
    pub size: u16,
    /// Guest address of the descriptor table.
    pub desc_table: u64,
    /// Guest address of the available ring.
    pub avail_ring: u64,
    /// Guest address of the used ring.
    pub used_ring: u64,
    /// Whether EVENT_IDX was negotiated.
    pub event_idx: bool,
    /// The next available entry to take.
    pub next_avail: u16,
    /// The next used entry to write.
    pub next_used: u16,
}

impl QueueState {
    /// Captures `queue`.
    #[must_use]
    pub fn capture(index: u16, queue: &Queue) -> Self {
        QueueState {
            index,
            max_size: queue.max_size(),
            size: queue.size(),
            desc_table: queue.desc_table(),
            avail_ring: queue.avail_ring(),
            used_ring: queue.used_ring(),
            event_idx: queue.event_idx_enabled(),
            next_avail: queue.next_avail(),
            next_used: queue.next_used(),
        }
    }

    /// The ring again, ready, where it was captured.
    ///
    /// # Errors
    /// When sizes or addresses are not those of a ring (misaligned, not a power of two).
    pub fn to_queue(&self) -> Result<Queue, virtio_queue::Error> {
        Queue::try_from(virtio_queue::QueueState {
            max_size: self.max_size,
            next_avail: self.next_avail,
            next_used: self.next_used,
            event_idx_enabled: self.event_idx,
            size: self.size,
            ready: true,
            desc_table: self.desc_table,
            avail_ring: self.avail_ring,
            used_ring: self.used_ring,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_survives_its_saved_form() {
        let state = QueueState {
            index: 1,
            max_size: 256,
            size: 128,
            desc_table: 0x1000,
            avail_ring: 0x2000,
            used_ring: 0x3000,
            event_idx: true,
            next_avail: 65_535,
            next_used: 65_530,
        };
        let queue = state.to_queue().unwrap();
        assert_eq!(QueueState::capture(1, &queue), state);
    }

    #[test]
    fn a_saved_form_that_is_no_ring_is_refused() {
        let good = QueueState {
            index: 0,
            max_size: 256,
            size: 128,
            desc_table: 0x1000,
            avail_ring: 0x2000,
            used_ring: 0x3000,
            event_idx: false,
            next_avail: 0,
            next_used: 0,
        };
        for bad in [
            QueueState { size: 3, ..good },
            QueueState { size: 512, ..good },
            QueueState {
                desc_table: 0x1001,
                ..good
            },
            QueueState {
                used_ring: 0x3002,
                ..good
            },
            QueueState {
                max_size: 0,
                ..good
            },
        ] {
            assert!(bad.to_queue().is_err(), "{bad:?}");
        }
    }
}
