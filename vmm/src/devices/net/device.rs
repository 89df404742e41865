//! The network device as its transport sees it: one pair of queues, one tap.

use std::borrow::Cow;
use std::io;
use std::os::fd::OwnedFd;

use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
    VIRTIO_NET_S_LINK_UP,
};

use super::frames::{Frames, Rx};
use super::metrics::NetMetrics;
use super::persist::{SavedNet, VERSION};
use super::tap::Tap;
use super::vhost::Vhost;
use crate::event_loop::EventSet;
use crate::virtio::device::{Activation, DeviceError, SavedDevice, VirtioDevice, read_saved};
use crate::virtio::queue::Active;

/// To the guest, from the guest (virtio 1.2 §5.1.2).
const RX: u16 = 0;
const TX: u16 = 1;
/// The event token of the tap; rings have small numbers.
const TAP: u32 = 1000;
/// virtio 1.2 §5.1.4.1
const MIN_MTU: u16 = 68;
/// Bytes of configuration space, up to the MTU.
const CONFIG_BYTES: usize = 12;

/// What a network device is made from.
#[derive(Debug)]
pub struct NetConfig {
    /// Its name.
    pub id: String,
    /// A tap, opened with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR.
    pub tap: OwnedFd,
    /// /dev/vhost-net, when the kernel is to move the frames.
    pub vhost: Option<OwnedFd>,
    /// The address the guest gets.
    pub mac: [u8; 6],
    /// The greatest packet, without the Ethernet header.
    pub mtu: u16,
    /// Entries of each queue: a power of two up to 1024.
    pub queue_size: u16,
}

/// Why a network device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// A value that cannot be.
    #[error("network device {id}: {what}")]
    BadConfig {
        /// The device.
        id: String,
        /// What is wrong.
        what: &'static str,
    },
    /// The descriptor is not a tap with virtio headers.
    #[error("network device {id}: taking over its tap: {source}")]
    Tap {
        /// The device.
        id: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The descriptor is not /dev/vhost-net.
    #[error("network device {id}: asking vhost-net for its features: {source}")]
    Vhost {
        /// The device.
        id: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Given for a restore, but does not fit.
    #[error("network device {id}: its saved form does not fit: {reason}")]
    Saved {
        /// The device.
        id: String,
        /// What does not fit.
        reason: String,
    },
}

/// Who moves the frames of an active device.
#[derive(Debug)]
enum Backend {
    Own(Box<Frames>),
    Kernel,
}

#[derive(Debug)]
struct Running {
    active: Active,
    backend: Backend,
    rx: usize,
    tx: usize,
    /// The tap is in the event loop.
    watching_tap: bool,
    /// The tap is gone for good.
    dead: bool,
}

/// The device.
#[derive(Debug)]
pub struct NetDevice {
    id: String,
    tap: Tap,
    vhost: Option<Vhost>,
    mtu: u16,
    queue_sizes: [u16; 2],
    features: u64,
    config: [u8; CONFIG_BYTES],
    running: Option<Running>,
    quiesced: bool,
    metrics: NetMetrics,
}

const fn bit(feature: u32) -> u64 {
    1 << feature
}

impl NetDevice {
    /// Makes the device.
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn new(config: NetConfig) -> Result<Self, NetError> {
        let id = config.id;
        let bad = |what| NetError::BadConfig {
            id: id.clone(),
            what,
        };
        if config.mtu < MIN_MTU {
            return Err(bad("the MTU is below 68"));
        }
        if !config.queue_size.is_power_of_two() || !(2..=1024).contains(&config.queue_size) {
            return Err(bad("the queue size must be a power of two from 2 to 1,024"));
        }
        if config.mac.first().is_none_or(|b| b & 1 == 1) {
            return Err(bad("the hardware address is a multicast one"));
        }
        let tap = Tap::new(config.tap).map_err(|source| NetError::Tap {
            id: id.clone(),
            source,
        })?;
        let mut features = bit(VIRTIO_NET_F_MAC)
            | bit(VIRTIO_NET_F_MTU)
            | bit(VIRTIO_NET_F_STATUS)
            | bit(VIRTIO_NET_F_CSUM)
            | bit(VIRTIO_NET_F_GUEST_CSUM)
            | bit(VIRTIO_NET_F_GUEST_TSO4)
            | bit(VIRTIO_NET_F_GUEST_TSO6)
            | bit(VIRTIO_NET_F_GUEST_ECN)
            | bit(VIRTIO_NET_F_HOST_TSO4)
            | bit(VIRTIO_NET_F_HOST_TSO6)
            | bit(VIRTIO_NET_F_HOST_ECN)
            | bit(VIRTIO_NET_F_MRG_RXBUF);
        let vhost = config.vhost.map(Vhost::new);
        if let Some(vhost) = &vhost {
            let theirs = vhost.features().map_err(|source| NetError::Vhost {
                id: id.clone(),
                source,
            })?;
            // The rest is between driver and tap.
            features &= theirs | !bit(VIRTIO_NET_F_MRG_RXBUF);
        }
        Ok(NetDevice {
            id,
            tap,
            vhost,
            mtu: config.mtu,
            queue_sizes: [config.queue_size; 2],
            features,
            config: config_space(config.mac, config.mtu),
            running: None,
            quiesced: false,
            metrics: NetMetrics::default(),
        })
    }

    /// Makes the device for a restored VM.
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn restore(config: NetConfig, state: &serde_json::Value) -> Result<Self, NetError> {
        let mut device = NetDevice::new(config)?;
        let wrong = |reason| NetError::Saved {
            id: device.id.clone(),
            reason,
        };
        let saved: SavedNet =
            read_saved(state, VERSION, |saved: &SavedNet| saved.version).map_err(wrong)?;
        if saved.features & !device.features != 0 {
            return Err(wrong(format!(
                "saved with features {:#x}, possible here are {:#x}",
                saved.features, device.features
            )));
        }
        device.features = saved.features;
        device.queue_sizes = [saved.queue_size; 2];
        Ok(device)
    }

    fn io(&self, attempted: &'static str, source: io::Error) -> DeviceError {
        DeviceError::Io {
            device: self.id.clone(),
            attempted,
            source,
        }
    }
}

impl Running {
    /// Puts the tap into the event loop, or takes it out.
    fn watch_tap(&mut self, tap: &Tap, on: bool) -> io::Result<()> {
        if on && !self.watching_tap && !self.dead {
            self.active.events.add(tap.fd(), TAP, EventSet::IN)?;
            self.watching_tap = true;
        } else if !on && std::mem::take(&mut self.watching_tap) {
            let _ = self.active.events.remove(tap.fd());
        }
        Ok(())
    }

    fn receive(&mut self, tap: &Tap, metrics: &mut NetMetrics) {
        let Backend::Own(frames) = &mut self.backend else {
            return;
        };
        let ended = frames.receive(&mut self.active, self.rx, tap, metrics);
        self.dead |= ended == Rx::Dead;
        // The tap is level-triggered: watched only while its frames have somewhere to go.
        let on = matches!(ended, Rx::Idle | Rx::Again);
        let _ = self.watch_tap(tap, on);
    }
}

/// `struct virtio_net_config` (virtio 1.2 §5.1.4).
fn config_space(mac: [u8; 6], mtu: u16) -> [u8; CONFIG_BYTES] {
    let [a, b, c, d, e, f] = mac;
    let up = u16::try_from(VIRTIO_NET_S_LINK_UP).unwrap_or(1);
    let ([s0, s1], [m0, m1]) = (up.to_le_bytes(), mtu.to_le_bytes());
    [a, b, c, d, e, f, s0, s1, 1, 0, m0, m1]
}

impl VirtioDevice for NetDevice {
    fn id(&self) -> &str {
        &self.id
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn device_features(&self) -> u64 {
        self.features
    }

    fn config_as_bytes(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.config)
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        let active = Active::new(activation);
        let (Some(rx), Some(tx)) = (active.position(RX), active.position(TX)) else {
            return Err(DeviceError::BadDriver {
                device: self.id.clone(),
                reason: "the receive or the transmit queue is not enabled".to_owned(),
            });
        };
        self.tap
            .set_offloads(active.features)
            .map_err(|e| self.io("setting the offloads of its tap", e))?;
        // Where the kernel cannot take the rings, the VMM moves the frames itself.
        let by_kernel = self
            .vhost
            .as_mut()
            .is_some_and(|v| v.start(&active, self.tap.fd()).is_ok());
        let backend = if by_kernel {
            Backend::Kernel
        } else {
            Backend::Own(Box::new(Frames::new(&active, self.mtu)))
        };
        self.metrics.backend = if by_kernel { "vhost" } else { "own" };
        let mut running = Running {
            active,
            backend,
            rx,
            tx,
            watching_tap: false,
            dead: false,
        };
        if !by_kernel {
            running
                .active
                .watch()
                .map_err(|e| self.io("watching its queues", e))?;
            running
                .watch_tap(&self.tap, true)
                .map_err(|e| self.io("watching its tap", e))?;
        }
        self.running = Some(running);
        self.quiesced = false;
        Ok(())
    }

    fn on_event(&mut self, token: u32, _events: EventSet) {
        if self.quiesced {
            return;
        }
        let Some(running) = self.running.as_mut() else {
            return;
        };
        let position = usize::try_from(token).unwrap_or(usize::MAX);
        if token == TAP || position == running.rx {
            running.receive(&self.tap, &mut self.metrics);
        } else if position == running.tx
            && let Backend::Own(frames) = &mut running.backend
        {
            frames.transmit(
                &mut running.active,
                running.tx,
                &self.tap,
                &mut self.metrics,
            );
        }
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        let Some(running) = self.running.as_mut() else {
            return Ok(());
        };
        if self.quiesced {
            return Ok(());
        }
        let done = match (&mut running.backend, self.vhost.as_mut()) {
            (Backend::Own(frames), _) => {
                frames.give_back(&mut running.active, running.rx);
                running.watch_tap(&self.tap, false)
            }
            (Backend::Kernel, Some(vhost)) => vhost.stop(&mut running.active),
            (Backend::Kernel, None) => Ok(()),
        };
        done.map_err(|e| self.io("stopping vhost-net", e))?;
        self.quiesced = true;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        if !std::mem::take(&mut self.quiesced) {
            return Ok(());
        }
        let Some(running) = self.running.as_mut() else {
            return Ok(());
        };
        let done = match (&running.backend, self.vhost.as_mut()) {
            (Backend::Own(_), _) => running.watch_tap(&self.tap, true),
            (Backend::Kernel, Some(vhost)) => vhost.start(&running.active, self.tap.fd()),
            (Backend::Kernel, None) => Ok(()),
        };
        running.active.kick_all();
        done.map_err(|e| self.io("starting vhost-net again", e))
    }

    fn reset(&mut self) {
        let stopped = self.quiesced;
        self.quiesced = false;
        if let Some(mut running) = self.running.take() {
            let _ = running.watch_tap(&self.tap, false);
            if let (Backend::Kernel, Some(vhost), false) =
                (&running.backend, self.vhost.as_mut(), stopped)
            {
                let _ = vhost.stop(&mut running.active);
            }
            running.active.unwatch();
        }
        let _ = self.tap.set_offloads(0);
    }

    fn save(&self) -> Result<SavedDevice, DeviceError> {
        if self.running.is_some() && !self.quiesced {
            return Err(DeviceError::not_quiesced(&self.id));
        }
        let state = SavedNet {
            version: VERSION,
            features: self.features,
            queue_size: self.queue_sizes.first().copied().unwrap_or(0),
        };
        let active = self.running.as_ref().map(|r| &r.active);
        let queues = active.map(Active::save).unwrap_or_default();
        SavedDevice::new(&self.id, &state, queues)
    }

    fn metrics(&self) -> serde_json::Value {
        serde_json::to_value(&self.metrics).unwrap_or_default()
    }
}

impl Drop for NetDevice {
    fn drop(&mut self) {
        self.reset();
    }
}
