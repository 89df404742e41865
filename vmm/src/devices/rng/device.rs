//! The entropy device as its transport sees it.

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::metrics::RngMetrics;
use super::persist::{SavedRng, VERSION};
use super::request::{MAX_BYTES, served};
use crate::event_loop::EventSet;
use crate::virtio::buffers::Buffers;
use crate::virtio::device::{Activation, DeviceError, SavedDevice, VirtioDevice, read_saved};
use crate::virtio::queue::Active;

const QUEUE_SIZES: [u16; 1] = [64];
/// Requests per turn; a guest that wants more has to wait for its turn.
const BUDGET: usize = 16;

/// The device.
#[derive(Debug, Default)]
pub struct RngDevice {
    active: Option<Active>,
    quiesced: bool,
    spare: Buffers<'static>,
    metrics: RngMetrics,
}

impl RngDevice {
    /// Makes the device.
    #[must_use]
    pub fn new() -> Self {
        RngDevice::default()
    }

    /// Makes the device for a restored VM.
    ///
    /// # Errors
    /// When the saved form is of another version.
    pub fn restore(state: &serde_json::Value) -> Result<Self, DeviceError> {
        let device = RngDevice::new();
        let wrong = |reason| DeviceError::BadSavedForm {
            device: device.id().to_owned(),
            reason,
        };
        read_saved(state, VERSION, |saved: &SavedRng| saved.version).map_err(wrong)?;
        Ok(device)
    }

    fn process(&mut self) {
        let RngDevice {
            active: Some(active),
            spare,
            metrics,
            ..
        } = self
        else {
            return;
        };
        active.drain(0, BUDGET, spare, |_mem, _index, buffers| {
            let Ok(Buffers { writable, .. }) = buffers else {
                metrics.malformed += 1;
                return 0;
            };
            let mut bytes = [0u8; MAX_BYTES];
            let wanted = served(writable.len());
            let bytes = bytes.get_mut(..wanted).unwrap_or_default();
            if !random(bytes) {
                metrics.failed += 1;
                return 0;
            }
            let written = writable.copy_from(bytes);
            metrics.requests += 1;
            metrics.bytes += written as u64;
            written
        });
    }
}

/// Fills `bytes` from the kernel; false when it has none, which happens only right after the
/// host's own start.
fn random(bytes: &mut [u8]) -> bool {
    let mut rest = bytes;
    while !rest.is_empty() {
        match getrandom(&mut *rest, GetRandomFlags::NONBLOCK) {
            Ok(n) if n > 0 => rest = rest.get_mut(n..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            _ => return false,
        }
    }
    true
}

impl VirtioDevice for RngDevice {
    fn id(&self) -> &'static str {
        "rng"
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn device_features(&self) -> u64 {
        0
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        let mut active = Active::new(activation);
        active.watch().map_err(|source| DeviceError::Io {
            device: self.id().to_owned(),
            attempted: "watching its queue",
            source,
        })?;
        self.active = Some(active);
        self.quiesced = false;
        Ok(())
    }

    fn on_event(&mut self, _token: u32, _events: EventSet) {
        if !self.quiesced {
            self.process();
        }
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        self.quiesced = true;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        self.quiesced = false;
        if let Some(active) = &self.active {
            active.kick_all();
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.quiesced = false;
        self.active = None;
    }

    fn save(&self) -> Result<SavedDevice, DeviceError> {
        let queues = self.active.as_ref().map(Active::save).unwrap_or_default();
        SavedDevice::new(self.id(), &SavedRng { version: VERSION }, queues)
    }

    fn metrics(&self) -> serde_json::Value {
        serde_json::to_value(&self.metrics).unwrap_or_default()
    }
}
