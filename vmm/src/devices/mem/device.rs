//! The memory device as its transport sees it.

use std::borrow::Cow;
use std::ops::Range;
use std::os::fd::AsRawFd;

use vm_memory::{GuestAddress, Permissions};

use super::handle::MemHandle;
use super::metrics::MemMetrics;
use super::persist::{SavedMem, VERSION};
use super::region::{BLOCK, Region};
use super::request::{REQUEST, Request, Response};
use crate::event_loop::EventSet;
use crate::memory::GuestMemory;
use crate::virtio::buffers::Buffers;
use crate::virtio::device::{Activation, DeviceError, SavedDevice, VirtioDevice, read_saved};
use crate::virtio::iovec::IoVecs;
use crate::virtio::queue::{Active, BUDGET};

/// virtio 1.2 §5.15: memory device.
const VIRTIO_ID_MEM: u32 = 24;
/// The driver touches nothing that is not plugged (§5.15.3).
const VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE: u32 = 1;
/// One queue, for requests, which come one at a time.
const QUEUE_SIZES: [u16; 1] = [64];
/// The token of the machine's poke; queues have theirs from zero.
const POKE: u32 = 1000;
/// How much is given back to the host in one go: pieces carry 32-bit lengths.
const PIECE: u64 = 1 << 30;

/// The device.
#[derive(Debug)]
pub struct MemDevice {
    handle: MemHandle,
    active: Option<Active>,
    quiesced: bool,
    spare: Buffers<'static>,
    metrics: MemMetrics,
}

impl MemDevice {
    /// Makes the device behind `handle`.
    #[must_use]
    pub fn new(handle: MemHandle) -> Self {
        MemDevice {
            handle,
            active: None,
            quiesced: false,
            spare: Buffers::default(),
            metrics: MemMetrics::default(),
        }
    }

    /// The region of a saved form.
    ///
    /// # Errors
    /// When it is of another version, or makes no sense.
    pub fn saved_region(state: &serde_json::Value) -> Result<Region, DeviceError> {
        let wrong = |reason| DeviceError::BadSavedForm {
            device: "mem".to_owned(),
            reason,
        };
        let saved: SavedMem =
            read_saved(state, VERSION, |saved: &SavedMem| saved.version).map_err(wrong)?;
        Region::restore(saved.addr, saved.size, saved.requested, &saved.plugged)
            .ok_or_else(|| wrong("its plugged ranges are not blocks of its region".to_owned()))
    }

    fn process(&mut self) {
        let MemDevice {
            handle,
            active: Some(active),
            spare,
            metrics,
            ..
        } = self
        else {
            return;
        };
        active.drain(0, BUDGET, spare, |mem, _index, buffers| {
            let Ok(buffers) = buffers else {
                metrics.malformed += 1;
                return 0;
            };
            serve(mem, handle, buffers, metrics)
        });
    }

    fn on_poke(&mut self) {
        // Edge-triggered; emptied so that the next one is an edge.
        let _ = self.handle.poke().read();
        if let Some(active) = &self.active {
            active.interrupt.signal_config();
        }
    }

    fn unwatch(&mut self) {
        if let Some(active) = &self.active {
            // Not there any more when the loop has let go of it.
            let _ = active.events.remove(self.handle.poke().as_raw_fd());
        }
    }
}

/// Answers one request; the bytes written. The readable ones are used up.
fn serve<'m>(
    mem: &'m GuestMemory,
    handle: &MemHandle,
    Buffers { readable, writable }: &mut Buffers<'m>,
    metrics: &mut MemMetrics,
) -> usize {
    let mut bytes = [0u8; REQUEST];
    let n = readable.copy_to(&mut bytes);
    let request = (n == REQUEST).then(|| Request::parse(&bytes)).flatten();
    let response = match request {
        None => Response::Error,
        Some(request) => {
            let (outcome, changed) = {
                let mut region = handle.region();
                let before = region.plugged();
                let outcome = region.handle(request);
                (outcome, region.plugged() != before)
            };
            for range in outcome.freed {
                free(mem, range, readable, metrics);
            }
            if changed {
                // Fails only when the counter is full, and then the descriptor is readable anyway.
                let _ = handle.changed().write(1);
            }
            outcome.response
        }
    };
    match response {
        Response::Ack | Response::State(_) => metrics.done += 1,
        Response::Nack => metrics.refused += 1,
        Response::Error => metrics.malformed += 1,
    }
    writable.copy_from(&response.to_bytes())
}

/// Gives a range back to the host. `scratch` is used up.
fn free<'m>(
    mem: &'m GuestMemory,
    range: Range<u64>,
    scratch: &mut IoVecs<'m>,
    metrics: &mut MemMetrics,
) {
    let mut start = range.start;
    while start < range.end {
        let len = (range.end - start).min(PIECE);
        scratch.clear();
        let pushed = u32::try_from(len)
            .ok()
            .and_then(|len| {
                scratch
                    .push(mem, GuestAddress(start), len, Permissions::Write)
                    .ok()
            })
            .is_some();
        start += len;
        if !pushed {
            metrics.failed += 1;
            continue;
        }
        match scratch.discard() {
            Ok(bytes) => metrics.freed_bytes += bytes,
            Err(_) => metrics.failed += 1,
        }
    }
}

impl VirtioDevice for MemDevice {
    fn id(&self) -> &'static str {
        "mem"
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_MEM
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn device_features(&self) -> u64 {
        1 << VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE
    }

    fn config_as_bytes(&self) -> Cow<'_, [u8]> {
        let region = self.handle.region();
        // virtio 1.2 §5.15.4: block_size, node_id and padding, addr, region_size, usable_region_size, plugged_size,
        // requested_size.
        let fields = [
            BLOCK,
            0,
            region.addr(),
            region.size(),
            region.usable(),
            region.plugged(),
            region.requested(),
        ];
        Cow::Owned(fields.into_iter().flat_map(u64::to_le_bytes).collect())
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        let mut active = Active::new(activation);
        let io = |source| DeviceError::Io {
            device: "mem".to_owned(),
            attempted: "watching its queue",
            source,
        };
        active.watch().map_err(io)?;
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        active
            .events
            .add(self.handle.poke().as_raw_fd(), POKE, edge)
            .map_err(io)?;
        self.active = Some(active);
        self.quiesced = false;
        Ok(())
    }

    fn on_event(&mut self, token: u32, _events: EventSet) {
        match token {
            POKE => self.on_poke(),
            _ if !self.quiesced => self.process(),
            _ => {}
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

    /// What is plugged stays plugged: a driver that comes anew asks, or unplugs all.
    fn reset(&mut self) {
        self.unwatch();
        self.quiesced = false;
        self.active = None;
    }

    fn save(&self) -> Result<SavedDevice, DeviceError> {
        let region = self.handle.region();
        let state = SavedMem {
            version: VERSION,
            addr: region.addr(),
            size: region.size(),
            requested: region.requested(),
            plugged: region.runs(),
        };
        let queues = self.active.as_ref().map(Active::save).unwrap_or_default();
        SavedDevice::new(self.id(), &state, queues)
    }

    fn metrics(&self) -> serde_json::Value {
        let region = self.handle.region();
        serde_json::to_value(MemMetrics {
            requested_bytes: region.requested(),
            plugged_bytes: region.plugged(),
            ..self.metrics.clone()
        })
        .unwrap_or_default()
    }
}
