//! The modern virtio-pci transport (virtio 1.2 §4.1): one BAR, MSI-X, a doorbell per queue.
//!
//! A function owns its device (shared with the I/O thread), the common configuration and the
//! MSI-X table. Nothing here knows what a device does with its queues.

mod common;
mod interrupt;
mod persist;
mod saved;

use std::fmt;
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use vmm_sys_util::eventfd::EventFd;

use self::common::{Action, Common};
use self::interrupt::PciInterrupt;
use super::device::{Activation, ActiveQueue, DeviceError, MAX_QUEUES, VirtioDevice};
use crate::event_loop::{EventLoop, EventSet, Handler, Registrar};
use crate::memory::GuestMemory;
use crate::pci::config::{ConfigSpace, Identity};
use crate::pci::msix::{self, Msix};
use crate::pci::{Address, PciFunction};
use crate::platform::{Platform, PlatformError};
use crate::sync::lock;

pub use saved::{SavedFunction, TransportRestoreError};

/// The BAR: common configuration, ISR, device configuration, doorbells, MSI-X table, pending.
const BAR_SIZE: u32 = 0x8000;
const COMMON_AT: u64 = 0;
const ISR_AT: u64 = 0x1000;
const DEVICE_AT: u64 = 0x2000;
const DEVICE_SIZE: u64 = 0x1000;
const NOTIFY_AT: u64 = 0x3000;
const NOTIFY_STEP: u64 = 4;
const NOTIFY_SIZE: u64 = NOTIFY_STEP * MAX_QUEUES as u64;
const TABLE_AT: u64 = 0x4000;
const TABLE_SIZE: u64 = (MAX_QUEUES as u64 + 1) * msix::ENTRY;
const PBA_AT: u64 = 0x5000;
const PBA_SIZE: u64 = 0x10;

const VENDOR: u16 = 0x1af4;
/// Modern device ids start here (virtio 1.2 §4.1.2).
const DEVICE_BASE: u16 = 0x1040;
const CAP_VENDOR: u8 = 0x09;
const CAP_MSIX: u8 = 0x11;

/// A device as the I/O thread and the transport share it.
pub type SharedDevice = Arc<Mutex<Box<dyn VirtioDevice>>>;

/// Why a function could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The device has no queues, or too many.
    #[error("device {device} has {queues} queues; it must have 1 to {MAX_QUEUES}")]
    Queues {
        /// The device's id.
        device: String,
        /// How many it has.
        queues: usize,
    },
    /// No descriptors are left.
    #[error("making the eventfds of device {device}: {source}")]
    EventFd {
        /// The device's id.
        device: String,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// Capabilities did not fit.
    #[error("the PCI capabilities of device {0} do not fit")]
    Capabilities(String),
}

/// What a function needs from its machine.
#[derive(Debug, Clone)]
pub struct TransportContext {
    /// Guest RAM.
    pub mem: GuestMemory,
    /// Interrupts and doorbells.
    pub platform: Arc<dyn Platform>,
    /// The I/O thread's loop.
    pub events: EventLoop,
}

struct EventHandler(SharedDevice);

impl Handler for EventHandler {
    fn on_event(&self, token: u32, events: EventSet) {
        lock(&self.0).on_event(token, events);
    }
}

/// One virtio device on the bus.
pub struct VirtioPci {
    id: String,
    address: Address,
    context: TransportContext,
    device: SharedDevice,
    registrar: Registrar,
    config: ConfigSpace,
    msix: Msix,
    msix_cap: usize,
    common: Common,
    interrupt: Arc<PciInterrupt>,
    kicks: Vec<EventFd>,
    /// Where the doorbells of which queues are registered.
    doorbells: Option<(u64, Vec<u16>)>,
    active: bool,
}

impl fmt::Debug for VirtioPci {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioPci")
            .field("id", &self.id)
            .field("address", &self.address)
            .field("active", &self.active)
            .finish_non_exhaustive()
    }
}

impl VirtioPci {
    /// A function for `device` at `address`, as after power-on.
    ///
    /// # Errors
    /// When the device is impossible, or descriptors run out.
    pub fn new(
        address: Address,
        device: Box<dyn VirtioDevice>,
        context: TransportContext,
    ) -> Result<Self, TransportError> {
        let id = device.id().to_owned();
        let max_sizes = device.queue_max_sizes().to_vec();
        let (Ok(queue_count), 1..=MAX_QUEUES) = (u16::try_from(max_sizes.len()), max_sizes.len())
        else {
            return Err(TransportError::Queues {
                device: id,
                queues: max_sizes.len(),
            });
        };
        let offered = device.device_features()
            | 1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_RING_F_EVENT_IDX;
        let fd_error = |source| TransportError::EventFd {
            device: id.clone(),
            source,
        };
        let vectors = queue_count + 1;
        let msix = Msix::new(Arc::clone(&context.platform), vectors).map_err(fd_error)?;
        let kicks = max_sizes
            .iter()
            .map(|_| EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC))
            .collect::<Result<Vec<_>, _>>()
            .map_err(fd_error)?;
        let device_type = device.device_type();
        let (config, msix_cap) = config_space(address, device_type, vectors)
            .ok_or_else(|| TransportError::Capabilities(id.clone()))?;
        let interrupt = Arc::new(PciInterrupt::new(msix.fds(), max_sizes.len()));
        let device: SharedDevice = Arc::new(Mutex::new(device));
        let registrar = context.events.registrar();
        context
            .events
            .set_handler(&registrar, Arc::new(EventHandler(Arc::clone(&device))));
        Ok(VirtioPci {
            id,
            address,
            context,
            device,
            registrar,
            config,
            msix,
            msix_cap,
            common: Common::new(offered, &max_sizes),
            interrupt,
            kicks,
            doorbells: None,
            active: false,
        })
    }

    /// The device's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The virtio device type.
    #[must_use]
    pub fn device_type(&self) -> u32 {
        lock(&self.device).device_type()
    }

    /// Where it sits.
    #[must_use]
    pub fn address(&self) -> Address {
        self.address
    }

    /// Whether the guest's driver runs it.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.active
    }

    /// The device, shared with the I/O thread.
    #[must_use]
    pub fn device(&self) -> &SharedDevice {
        &self.device
    }

    /// Stops the device from touching guest memory.
    ///
    /// # Errors
    /// The device's.
    pub fn quiesce(&self) -> Result<(), DeviceError> {
        lock(&self.device).quiesce()
    }

    /// Undoes `quiesce`.
    ///
    /// # Errors
    /// The device's.
    pub fn resume(&self) -> Result<(), DeviceError> {
        lock(&self.device).resume()
    }

    /// The device's counters.
    #[must_use]
    pub fn metrics(&self) -> serde_json::Value {
        lock(&self.device).metrics()
    }

    /// Takes everything down: for unplugging, and before the VM ends.
    pub fn shut_down(&mut self) {
        self.reset();
        self.msix.reset();
        self.context.events.remove_handler(&self.registrar);
    }

    fn reset(&mut self) {
        if self.active {
            lock(&self.device).reset();
            self.active = false;
        }
        self.update_doorbells();
        self.common.reset();
        self.interrupt.reset();
        for kick in &self.kicks {
            // Empty already, or emptied now.
            let _ = kick.read();
        }
    }

    fn activate(&mut self) {
        let result = self
            .active_queues()
            .and_then(|queues| self.start_device(queues));
        if result.is_err() {
            self.fail();
        }
    }

    fn fail(&mut self) {
        self.common.set_needs_reset();
        use crate::virtio::device::Interrupt;
        self.interrupt.signal_config();
    }

    /// The enabled queues as the driver set them up, checked against guest memory.
    fn active_queues(&self) -> Result<Vec<ActiveQueue>, DeviceError> {
        let event_idx = self.common.acked >> VIRTIO_RING_F_EVENT_IDX & 1 == 1;
        let bad = |index: u16, reason: &str| DeviceError::BadDriver {
            device: self.id.clone(),
            reason: format!("queue {index} {reason}"),
        };
        let mut queues = Vec::new();
        for ((index, config), kick) in (0u16..).zip(&self.common.queues).zip(&self.kicks) {
            if !config.enabled {
                continue;
            }
            let queue = config
                .to_queue(event_idx)
                .map_err(|_| bad(index, "has impossible addresses"))?;
            if !queue.is_valid(&self.context.mem) {
                return Err(bad(index, "lies outside of memory"));
            }
            queues.push(ActiveQueue {
                index,
                queue,
                kick: self.clone_kick(kick)?,
            });
        }
        Ok(queues)
    }

    fn clone_kick(&self, kick: &EventFd) -> Result<EventFd, DeviceError> {
        kick.try_clone().map_err(|source| DeviceError::Io {
            device: self.id.clone(),
            attempted: "duplicating a doorbell",
            source,
        })
    }

    fn start_device(&mut self, queues: Vec<ActiveQueue>) -> Result<(), DeviceError> {
        let activation = Activation {
            mem: self.context.mem.clone(),
            features: self.common.acked,
            queues,
            interrupt: Arc::clone(&self.interrupt) as Arc<_>,
            events: self.registrar.clone(),
        };
        lock(&self.device).activate(activation)?;
        self.active = true;
        self.update_doorbells();
        Ok(())
    }

    /// Registers the doorbells where the BAR is now, or nowhere while there is nothing to ring.
    fn update_doorbells(&mut self) {
        let base = self.config.decoded_bar().filter(|_| self.active);
        let wanted = base.map(|b| u64::from(b) + NOTIFY_AT);
        if self.doorbells.as_ref().map(|(at, _)| *at) == wanted {
            return;
        }
        let ring = |at: u64, index: u16| at + u64::from(index) * NOTIFY_STEP;
        if let Some((at, indices)) = self.doorbells.take() {
            for index in indices {
                if let Some(kick) = self.kicks.get(usize::from(index)) {
                    // KVM knows the doorbell, as it was registered; nothing else can fail.
                    let _ = self.context.platform.remove_doorbell(kick, ring(at, index));
                }
            }
        }
        let Some(at) = wanted else { return };
        let mut indices = Vec::new();
        for ((index, config), kick) in (0u16..).zip(&self.common.queues).zip(&self.kicks) {
            // Without a doorbell the write exits and `bar_write` rings, so a refusal only costs
            // time (the guest may have put two BARs over each other).
            if config.enabled
                && self
                    .context
                    .platform
                    .add_doorbell(kick, ring(at, index))
                    .is_ok()
            {
                indices.push(index);
            }
        }
        self.doorbells = Some((at, indices));
    }

    fn msix_changed(&mut self, result: Result<(), PlatformError>) {
        if result.is_err() {
            // No route is left for this guest: the device cannot interrupt, and says so.
            self.fail();
        }
    }
}

impl PciFunction for VirtioPci {
    fn config_read(&mut self, offset: usize, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn config_write(&mut self, offset: usize, data: &[u8]) {
        self.config.write(offset, data);
        let control = self.config.word(self.msix_cap + 2);
        let result = self.msix.set_control(control);
        self.msix_changed(result);
        self.update_doorbells();
    }

    fn decoded(&self) -> Option<(u64, u64)> {
        self.config
            .decoded_bar()
            .map(|bar| (u64::from(bar), u64::from(BAR_SIZE)))
    }

    fn bar_read(&mut self, offset: u64, data: &mut [u8]) {
        match region(offset, data.len()) {
            Some(Region::Common(at)) => self.common.read(at, data, &self.interrupt),
            Some(Region::Device(at)) => lock(&self.device).read_config(at, data),
            Some(Region::Table(at)) => self.msix.read_table(at, data),
            Some(Region::Pending(at)) => self.msix.read_pba(at, data),
            // The ISR stays zero: with MSI-X it is not used (§4.1.4.5).
            Some(Region::Notify(_)) | None => {}
        }
    }

    fn bar_write(&mut self, offset: u64, data: &[u8]) {
        match region(offset, data.len()) {
            Some(Region::Common(at)) => match self.common.write(at, data, &self.interrupt) {
                Action::None => {}
                Action::Reset => self.reset(),
                Action::Activate => self.activate(),
            },
            Some(Region::Device(at)) => lock(&self.device).write_config(at, data),
            Some(Region::Table(at)) => {
                let result = self.msix.write_table(at, data);
                self.msix_changed(result);
            }
            Some(Region::Notify(at)) => {
                let index = usize::try_from(at / NOTIFY_STEP).unwrap_or(usize::MAX);
                if let Some(kick) = self.kicks.get(index).filter(|_| self.active) {
                    // Full means a kick is pending.
                    let _ = kick.write(1);
                }
            }
            Some(Region::Pending(_)) | None => {}
        }
    }
}

impl Drop for VirtioPci {
    fn drop(&mut self) {
        self.shut_down();
    }
}

enum Region {
    Common(u64),
    Device(u64),
    Notify(u64),
    Table(u64),
    Pending(u64),
}

/// Which structure an access is in; none when it is in no structure, or crosses its end.
fn region(offset: u64, len: usize) -> Option<Region> {
    let inside = |start: u64, size: u64| {
        let at = offset.checked_sub(start)?;
        (at.checked_add(len as u64)? <= size).then_some(at)
    };
    inside(COMMON_AT, common::SIZE)
        .map(Region::Common)
        .or_else(|| inside(DEVICE_AT, DEVICE_SIZE).map(Region::Device))
        .or_else(|| inside(NOTIFY_AT, NOTIFY_SIZE).map(Region::Notify))
        .or_else(|| inside(TABLE_AT, TABLE_SIZE).map(Region::Table))
        .or_else(|| inside(PBA_AT, PBA_SIZE).map(Region::Pending))
}

/// Configuration space with the virtio capabilities (§4.1.4) and MSI-X. Returns the offset of
/// the MSI-X capability too.
fn config_space(address: Address, device_type: u32, vectors: u16) -> Option<(ConfigSpace, usize)> {
    let class = match device_type {
        1 => [0x02, 0x00, 0x00],
        2 => [0x01, 0x80, 0x00],
        _ => [0xff, 0x00, 0x00],
    };
    let identity = Identity {
        vendor: VENDOR,
        device: DEVICE_BASE.checked_add(u16::try_from(device_type).ok()?)?,
        revision: 1,
        class,
        subsystem_vendor: VENDOR,
        subsystem: DEVICE_BASE,
    };
    let mut config = ConfigSpace::new(&identity, address.default_bar(BAR_SIZE), BAR_SIZE);
    let structures = [
        (1u8, COMMON_AT, common::SIZE),
        (2, NOTIFY_AT, NOTIFY_SIZE),
        (3, ISR_AT, 1),
        (4, DEVICE_AT, DEVICE_SIZE),
    ];
    for (kind, at, size) in structures {
        // cfg_type, bar, id, padding, offset, length; the doorbells add their multiplier.
        let is_notify = kind == 2;
        let cap_len = if is_notify { 20 } else { 16 };
        let mut body = vec![cap_len, kind, 0, 0, 0, 0];
        body.extend_from_slice(&u32::try_from(at).ok()?.to_le_bytes());
        body.extend_from_slice(&u32::try_from(size).ok()?.to_le_bytes());
        if is_notify {
            body.extend_from_slice(&u32::try_from(NOTIFY_STEP).ok()?.to_le_bytes());
        }
        config.add_capability(CAP_VENDOR, &body, &[])?;
    }
    let mut body = (vectors - 1).to_le_bytes().to_vec();
    body.extend_from_slice(&u32::try_from(TABLE_AT).ok()?.to_le_bytes());
    body.extend_from_slice(&u32::try_from(PBA_AT).ok()?.to_le_bytes());
    let writable = (msix::ENABLE | msix::MASK_ALL).to_le_bytes();
    let at = config.add_capability(CAP_MSIX, &body, &writable)?;
    Some((config, at))
}

#[cfg(test)]
mod tests;
