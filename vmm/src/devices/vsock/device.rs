//! The vsock device as its transport sees it: three queues, one address.

use std::borrow::Cow;
use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;

use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use vm_memory::{Bytes, GuestAddress};

use super::muxer::Muxer;
use super::packet::HEADER;
use super::persist::{SavedVsock, VERSION};
use crate::event_loop::EventSet;
use crate::memory::GuestMemory;
use crate::virtio::buffers::Buffers;
use crate::virtio::device::{
    Activation, DeviceError, Interrupt, SavedDevice, VirtioDevice, read_saved,
};
use crate::virtio::queue::{Active, BUDGET, Ring};

/// Towards the guest, from the guest, events (virtio 1.2 §5.10.2).
const RX: u16 = 0;
const TX: u16 = 1;
const EVENT: u16 = 2;
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];
/// The event token of the muxer; rings have small numbers.
const MUXER: u32 = 1000;
/// virtio 1.2 §5.10.6.7: all connections are gone.
const TRANSPORT_RESET: u32 = 0;
/// The longest socket path, so that "_" and a port still fit (107 bytes in `sockaddr_un`).
const MAX_PATH: usize = 96;

/// What a vsock device is made from.
#[derive(Debug, Clone)]
pub struct VsockConfig {
    /// The guest's address, 3 or more.
    pub cid: u64,
    /// The Unix socket host clients connect to; see `docs/vmm-api.md`.
    pub path: PathBuf,
}

/// Why a vsock device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// 0 to 2 are taken by the standard, and an address has 32 bits that mean something.
    #[error("vsock: the guest's address must be 3 to 4294967294, not {cid}")]
    BadCid {
        /// What was asked for.
        cid: u64,
    },
    /// Too long for a socket address.
    #[error("vsock: the socket path {path:?} is longer than {MAX_PATH} bytes")]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// The socket could not be made.
    #[error("vsock: listening at {path:?}: {source}")]
    Listen {
        /// The path.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The saved form is not one of this version.
    #[error("vsock: its saved form does not fit: {reason}")]
    Saved {
        /// What does not fit.
        reason: String,
    },
}

/// What a restored driver knows of the end of its connections (virtio 1.2 §5.10.6.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TransportReset {
    /// All it has to.
    Settled,
    /// The event has not been sent yet.
    Due,
    /// It was sent in the buffer at this address, and ends all connections it has when it comes to
    /// that. It gives the buffer back when it has: Linux adds it to the queue again after
    /// `virtio_vsock_event_handle`.
    Sent(GuestAddress),
}

/// The device.
#[derive(Debug)]
pub struct VsockDevice {
    cid: u64,
    muxer: Muxer,
    active: Option<Active>,
    quiesced: bool,
    transport_reset: TransportReset,
    /// Packets of the guest wait for room for our refusals.
    tx_waits: bool,
    spare: Buffers<'static>,
}

impl VsockDevice {
    /// Makes the device and its socket.
    ///
    /// # Errors
    /// See [`VsockError`].
    pub fn new(config: VsockConfig) -> Result<Self, VsockError> {
        if config.cid < 3 || config.cid >= u64::from(u32::MAX) {
            return Err(VsockError::BadCid { cid: config.cid });
        }
        if config.path.as_os_str().len() > MAX_PATH {
            return Err(VsockError::PathTooLong { path: config.path });
        }
        let muxer = Muxer::bind(config.cid, &config.path).map_err(|source| VsockError::Listen {
            path: config.path,
            source,
        })?;
        Ok(VsockDevice {
            cid: config.cid,
            muxer,
            active: None,
            quiesced: false,
            transport_reset: TransportReset::Settled,
            tx_waits: false,
            spare: Buffers::default(),
        })
    }

    /// Makes the device for a restored VM: the driver is sent the end of its connections, and
    /// sees new ones when it has handled that.
    ///
    /// # Errors
    /// See [`VsockError`].
    pub fn restore(config: VsockConfig, state: &serde_json::Value) -> Result<Self, VsockError> {
        let saved = read_saved(state, VERSION, |saved: &SavedVsock| saved.version)
            .map_err(|reason| VsockError::Saved { reason })?;
        let mut device = VsockDevice::new(config)?;
        device.transport_reset = TransportReset::Due;
        let former = (saved.cid != device.cid).then_some(saved.cid);
        device.muxer.hold(former);
        device.muxer.set_next_port(saved.next_port);
        Ok(device)
    }

    fn io(&self, attempted: &'static str, source: io::Error) -> DeviceError {
        DeviceError::Io {
            device: self.id().to_owned(),
            attempted,
            source,
        }
    }

    /// Takes packets from the guest.
    fn process_tx(&mut self) {
        let Some(active) = self.active.as_mut() else {
            return;
        };
        let Some(position) = active.position(TX) else {
            return;
        };
        let muxer = &mut self.muxer;
        // Taken up again when the guest has given buffers for the refusals.
        self.tx_waits = muxer.must_wait();
        if self.tx_waits {
            return;
        }
        active.drain_while(
            position,
            BUDGET,
            &mut self.spare,
            |_mem, _index, buffers| {
                match buffers {
                    Ok(packet) => muxer.receive(&mut packet.readable),
                    Err(_) => muxer.metrics.malformed += 1,
                }
                match muxer.must_wait() {
                    true => ControlFlow::Break(0),
                    false => ControlFlow::Continue(0),
                }
            },
        );
        self.tx_waits = self.muxer.must_wait();
    }

    /// Gives packets to the guest.
    fn process_rx(&mut self) {
        let Some(active) = self.active.as_mut() else {
            return;
        };
        let Some(position) = active.position(RX) else {
            return;
        };
        let Some(ring) = active.rings.get_mut(position) else {
            return;
        };
        let mut buffers = std::mem::take(&mut self.spare).recycle();
        let mut given = 0;
        ring.disable_notification(&active.mem);
        while self.muxer.has_news() {
            if given >= BUDGET {
                ring.kick_self();
                break;
            }
            let Some(chain) = ring.pop(&active.mem) else {
                // No buffers: ask for a kick when there are some, unless they came just now.
                if ring.enable_notification(&active.mem) {
                    ring.disable_notification(&active.mem);
                    match ring.pop(&active.mem) {
                        Some(_) => {
                            ring.undo_pop();
                            continue;
                        }
                        None => break,
                    }
                }
                break;
            };
            let head = chain.head_index();
            let gathered = buffers.gather(chain, &*active.mem);
            if gathered.is_err() || buffers.writable.len() < HEADER {
                self.muxer.metrics.malformed += 1;
                ring.push(&active.mem, head, 0);
                given += 1;
                continue;
            }
            match self.muxer.fill(&buffers.writable) {
                Some(len) => {
                    ring.push(&active.mem, head, u32::try_from(len).unwrap_or(0));
                    given += 1;
                }
                None => {
                    ring.undo_pop();
                    break;
                }
            }
        }
        if given > 0 {
            ring.notify(&active.mem, active.interrupt.as_ref());
        }
        self.spare = buffers.recycle();
    }

    /// Tells a restored driver that its connections are gone, and once it has ended them, of the new
    /// ones. Those that the driver hears of before would be ended with the old.
    fn process_event(&mut self) {
        if self.transport_reset == TransportReset::Due {
            self.send_reset_event();
        }
        if self.has_taken_reset() {
            self.transport_reset = TransportReset::Settled;
            // What it sent before comes from its former address.
            self.process_tx();
            self.muxer.release();
        }
    }

    /// Writes the event into the driver's next buffer.
    fn send_reset_event(&mut self) {
        let Some((mem, interrupt, ring)) = event_ring(&mut self.active) else {
            return;
        };
        let mut chain = ring.pop(mem);
        if chain.is_none() && ring.enable_notification(mem) {
            chain = ring.pop(mem);
        }
        let Some(chain) = chain else {
            return;
        };
        let head = chain.head_index();
        let buffer = chain
            .writable()
            .find(|buffer| buffer.len() >= 4)
            .map(|buffer| buffer.addr())
            .filter(|at| mem.write_obj(TRANSPORT_RESET.to_le(), *at).is_ok());
        ring.push(mem, head, if buffer.is_some() { 4 } else { 0 });
        ring.notify(mem, interrupt);
        match buffer {
            Some(at) => self.transport_reset = TransportReset::Sent(at),
            // The next may do.
            None => ring.kick_self(),
        }
    }

    /// Whether the driver has done what the event asks of it; if not, it kicks with the next buffer.
    fn has_taken_reset(&mut self) -> bool {
        let TransportReset::Sent(buffer) = self.transport_reset else {
            return false;
        };
        let Some((mem, _, ring)) = event_ring(&mut self.active) else {
            return false;
        };
        ring.look(mem, |chain| {
            chain.writable().any(|piece| piece.addr() == buffer)
        })
    }

    fn stop(&mut self) {
        if let Some(mut active) = self.active.take() {
            let _ = active.events.remove(self.muxer.fd());
            active.unwatch();
        }
        self.muxer.clear();
        // A driver that starts anew has no connections.
        self.transport_reset = TransportReset::Settled;
        self.tx_waits = false;
        self.quiesced = false;
    }
}

/// The event queue with what working it takes.
fn event_ring(active: &mut Option<Active>) -> Option<(&GuestMemory, &dyn Interrupt, &mut Ring)> {
    let active = active.as_mut()?;
    let position = active.position(EVENT)?;
    let ring = active.rings.get_mut(position)?;
    Some((&active.mem, active.interrupt.as_ref(), ring))
}

impl VirtioDevice for VsockDevice {
    fn id(&self) -> &'static str {
        "vsock"
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn device_features(&self) -> u64 {
        // Without VIRTIO_VSOCK_F_* bits only stream sockets exist (virtio 1.2 §5.10.3).
        0
    }

    fn config_as_bytes(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.cid.to_le_bytes().to_vec())
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        let mut active = Active::new(activation);
        if active.position(RX).is_none() || active.position(TX).is_none() {
            return Err(DeviceError::BadDriver {
                device: self.id().to_owned(),
                reason: "the receive or the transmit queue is not enabled".to_owned(),
            });
        }
        active
            .watch()
            .map_err(|e| self.io("watching its queues", e))?;
        active
            .events
            .add(self.muxer.fd(), MUXER, EventSet::IN)
            .map_err(|e| self.io("watching its sockets", e))?;
        if active.position(EVENT).is_none() {
            // There is no way to send it the event, so there is nothing to wait for.
            self.transport_reset = TransportReset::Settled;
            self.muxer.release();
        }
        self.active = Some(active);
        self.quiesced = false;
        Ok(())
    }

    fn on_event(&mut self, token: u32, _events: EventSet) {
        if self.quiesced {
            return;
        }
        let Some(active) = self.active.as_ref() else {
            return;
        };
        if token == MUXER {
            self.muxer.turn();
        } else {
            let index = usize::try_from(token)
                .ok()
                .and_then(|at| active.rings.get(at))
                .map(|r| r.index);
            match index {
                Some(TX) => self.process_tx(),
                Some(EVENT) => self.process_event(),
                _ => {}
            }
        }
        self.process_rx();
        if self.tx_waits && !self.muxer.must_wait() {
            self.process_tx();
            self.process_rx();
        }
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        if let (Some(active), false) = (self.active.as_ref(), self.quiesced) {
            // Level-triggered: left in, it would keep the loop spinning.
            active
                .events
                .remove(self.muxer.fd())
                .map_err(|e| self.io("letting go of its sockets", e))?;
        }
        self.quiesced = true;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        if let (Some(active), true) = (self.active.as_ref(), self.quiesced) {
            active
                .events
                .add(self.muxer.fd(), MUXER, EventSet::IN)
                .map_err(|e| self.io("watching its sockets", e))?;
            active.kick_all();
        }
        self.quiesced = false;
        Ok(())
    }

    fn reset(&mut self) {
        self.stop();
    }

    fn save(&self) -> Result<SavedDevice, DeviceError> {
        let state = SavedVsock {
            version: VERSION,
            cid: self.cid,
            next_port: self.muxer.next_port(),
        };
        let queues = self.active.as_ref().map(Active::save).unwrap_or_default();
        SavedDevice::new(self.id(), &state, queues)
    }

    fn metrics(&self) -> serde_json::Value {
        serde_json::to_value(&self.muxer.metrics).unwrap_or_default()
    }
}
