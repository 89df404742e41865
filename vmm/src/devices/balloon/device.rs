//! The balloon as its transport sees it.

use std::borrow::Cow;

use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use vm_memory::{GuestAddress, Permissions};

use super::metrics::BalloonMetrics;
use super::persist::{SavedBalloon, VERSION};
use super::request::{MAX_PAGES, runs};
use crate::event_loop::EventSet;
use crate::memory::GuestMemory;
use crate::virtio::buffers::Buffers;
use crate::virtio::device::{Activation, DeviceError, SavedDevice, VirtioDevice, read_saved};
use crate::virtio::queue::{Active, BUDGET};

/// virtio 1.2 §5.5.3
const VIRTIO_BALLOON_F_REPORTING: u32 = 5;
/// Inflate, deflate, reporting: without the statistics and hinting features their queues do not
/// exist, and drivers number the rest without gaps.
const QUEUE_SIZES: [u16; 3] = [128, 128, 128];
const INFLATE: u16 = 0;
const REPORTING: u16 = 2;
/// Where `actual` is in configuration space.
const ACTUAL: usize = 4;

/// The device.
#[derive(Debug, Default)]
pub struct BalloonDevice {
    active: Option<Active>,
    quiesced: bool,
    actual: [u8; 4],
    spare: Buffers<'static>,
    metrics: BalloonMetrics,
}

impl BalloonDevice {
    /// Makes the device.
    #[must_use]
    pub fn new() -> Self {
        BalloonDevice::default()
    }

    /// Makes the device for a restored VM.
    ///
    /// # Errors
    /// When the saved form is of another version.
    pub fn restore(state: &serde_json::Value) -> Result<Self, DeviceError> {
        let mut device = BalloonDevice::new();
        let wrong = |reason| DeviceError::BadSavedForm {
            device: "balloon".to_owned(),
            reason,
        };
        let saved: SavedBalloon =
            read_saved(state, VERSION, |saved: &SavedBalloon| saved.version).map_err(wrong)?;
        device.actual = saved.actual.to_le_bytes();
        Ok(device)
    }

    fn process(&mut self, position: usize) {
        let BalloonDevice {
            active: Some(active),
            spare,
            metrics,
            ..
        } = self
        else {
            return;
        };
        active.drain(position, BUDGET, spare, |mem, index, buffers| {
            let Ok(buffers) = buffers else {
                metrics.malformed += 1;
                return 0;
            };
            match index {
                INFLATE => inflate(mem, buffers, metrics),
                REPORTING => {
                    metrics.reports += 1;
                    // The guest does not care what it finds there (no PAGE_POISON is offered).
                    match buffers.writable.discard() {
                        Ok(bytes) => metrics.reported_bytes += bytes,
                        Err(_) => metrics.failed += 1,
                    }
                }
                // Deflating needs nothing: pages come back when they are touched.
                _ => {}
            }
            0
        });
    }
}

/// Gives the pages in a list, which is readable, back to the host.
fn inflate<'m>(mem: &'m GuestMemory, buffers: &mut Buffers<'m>, metrics: &mut BalloonMetrics) {
    let mut bytes = [0u8; MAX_PAGES * 4];
    let n = buffers.readable.copy_to(&mut bytes);
    // Nothing is answered, so the other list is free.
    let pages = &mut buffers.writable;
    for run in runs(bytes.get(..n).unwrap_or_default()) {
        pages.clear();
        let pushed = u32::try_from(run.len)
            .ok()
            .and_then(|len| {
                pages
                    .push(mem, GuestAddress(run.start), len, Permissions::Write)
                    .ok()
            })
            .is_some();
        if !pushed {
            metrics.malformed += 1;
            continue;
        }
        match pages.discard() {
            Ok(bytes) => metrics.inflated_bytes += bytes,
            Err(_) => metrics.failed += 1,
        }
    }
}

impl VirtioDevice for BalloonDevice {
    fn id(&self) -> &'static str {
        "balloon"
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn device_features(&self) -> u64 {
        1 << VIRTIO_BALLOON_F_REPORTING
    }

    fn config_as_bytes(&self) -> Cow<'_, [u8]> {
        // num_pages, which stays zero, then actual.
        Cow::Owned([[0; ACTUAL], self.actual].concat())
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let Ok(offset) = usize::try_from(offset) else {
            return;
        };
        for (at, byte) in data.iter().enumerate() {
            let place = offset.saturating_add(at).checked_sub(ACTUAL);
            if let Some(to) = place.and_then(|p| self.actual.get_mut(p)) {
                *to = *byte;
            }
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        let mut active = Active::new(activation);
        active.watch().map_err(|source| DeviceError::Io {
            device: self.id().to_owned(),
            attempted: "watching its queues",
            source,
        })?;
        self.active = Some(active);
        self.quiesced = false;
        Ok(())
    }

    fn on_event(&mut self, token: u32, _events: EventSet) {
        if !self.quiesced {
            self.process(usize::try_from(token).unwrap_or(usize::MAX));
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
        self.actual = [0; 4];
    }

    fn save(&self) -> Result<SavedDevice, DeviceError> {
        let state = SavedBalloon {
            version: VERSION,
            actual: u32::from_le_bytes(self.actual),
        };
        let queues = self.active.as_ref().map(Active::save).unwrap_or_default();
        SavedDevice::new(self.id(), &state, queues)
    }

    fn metrics(&self) -> serde_json::Value {
        serde_json::to_value(&self.metrics).unwrap_or_default()
    }
}
