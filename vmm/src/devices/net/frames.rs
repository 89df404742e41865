//! Frames moved by the VMM itself: straight between the tap and guest memory.
//!
//! Buffers for frames to the guest are taken from the ring ahead of the frames, as the length of
//! a frame is only known when it is there; those not used yet are given back at a pause.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_MRG_RXBUF,
};

use super::header::{self, HEADER, MAX_FRAME, NUM_BUFFERS};
use super::metrics::NetMetrics;
use super::tap::Tap;
use crate::virtio::buffers::Buffers;
use crate::virtio::iovec::{HeldIoVecs, MAX_PIECES};
use crate::virtio::queue::{Active, BUDGET};

/// A chain of the receive ring that waits for a frame.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    head: u16,
    pieces: usize,
    len: usize,
}

/// How a turn of receiving ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rx {
    /// The tap has no more.
    Idle,
    /// More may be there; others are to have a turn first.
    Again,
    /// The guest has no buffers; its kick starts it again.
    Starved,
    /// The tap is gone.
    Dead,
}

/// The state of both directions.
#[derive(Debug)]
pub struct Frames {
    waiting: VecDeque<Waiting>,
    buffers: HeldIoVecs,
    mergeable: bool,
    needed: usize,
    spare: Buffers<'static>,
}

impl Frames {
    /// For the driver of `active`, on a link with `mtu`.
    #[must_use]
    pub fn new(active: &Active, mtu: u16) -> Self {
        let large = active.has_feature(VIRTIO_NET_F_GUEST_TSO4)
            || active.has_feature(VIRTIO_NET_F_GUEST_TSO6);
        Frames {
            waiting: VecDeque::new(),
            buffers: HeldIoVecs::new(Arc::clone(&active.mem)),
            mergeable: active.has_feature(VIRTIO_NET_F_MRG_RXBUF),
            // virtio 1.2 §5.1.6.3.1 has the driver provide this much.
            needed: if large {
                HEADER + MAX_FRAME - 4
            } else {
                HEADER + header::ETHERNET + usize::from(mtu)
            },
            spare: Buffers::default(),
        }
    }

    /// Gives buffers taken ahead back to the ring.
    pub fn give_back(&mut self, active: &mut Active, position: usize) {
        if let Some(ring) = active.rings.get_mut(position) {
            for _ in 0..self.waiting.len() {
                ring.undo_pop();
            }
        }
        self.waiting.clear();
        self.buffers.advance(usize::MAX);
    }

    /// Takes chains until a frame of any length fits.
    fn stock(&mut self, active: &mut Active, position: usize, metrics: &mut NetMetrics) -> bool {
        let Some(ring) = active.rings.get_mut(position) else {
            return false;
        };
        while self.waiting.is_empty() || (self.mergeable && self.buffers.get().len() < self.needed)
        {
            let Some(chain) = ring.pop(&active.mem) else {
                return false;
            };
            let head = chain.head_index();
            let least = if self.mergeable { HEADER } else { self.needed };
            let spare = &mut self.spare;
            let added = self.buffers.with(|mem, buffers| {
                let mut found = std::mem::take(spare).recycle();
                let good = found.gather(chain, mem).is_ok() && found.writable.len() >= least;
                let added = (good && buffers.append(&found.writable).is_ok())
                    .then(|| (found.writable.count(), found.writable.len()));
                *spare = found.recycle();
                added
            });
            match added {
                Some((pieces, len)) => self.waiting.push_back(Waiting { head, pieces, len }),
                None => {
                    metrics.rx_bad_buffers += 1;
                    ring.push(&active.mem, head, 0);
                }
            }
        }
        true
    }

    /// Moves frames from the tap to the guest.
    pub fn receive(
        &mut self,
        active: &mut Active,
        position: usize,
        tap: &Tap,
        metrics: &mut NetMetrics,
    ) -> Rx {
        let mut moved = false;
        if let Some(ring) = active.rings.get_mut(position) {
            ring.disable_notification(&active.mem);
        }
        let mut ended = Rx::Again;
        for _ in 0..BUDGET {
            if !self.stock(active, position, metrics) {
                let more = active
                    .rings
                    .get_mut(position)
                    .is_some_and(|r| r.enable_notification(&active.mem));
                // Buffers may have come just before notifications were on.
                if !more || !self.stock(active, position, metrics) {
                    metrics.rx_starved += 1;
                    ended = Rx::Starved;
                    break;
                }
            }
            let pieces = if self.mergeable {
                MAX_PIECES
            } else {
                self.waiting.front().map_or(0, |w| w.pieces)
            };
            match self.buffers.get().readv_first(tap.borrow(), pieces) {
                Ok(n) => {
                    self.deliver(n, active, position);
                    metrics.rx_frames += 1;
                    metrics.rx_bytes += n.saturating_sub(HEADER) as u64;
                    moved = true;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    ended = Rx::Idle;
                    break;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    ended = Rx::Dead;
                    break;
                }
            }
        }
        if moved && let Some(ring) = active.rings.get_mut(position) {
            ring.notify(&active.mem, active.interrupt.as_ref());
        }
        ended
    }

    /// Hands the chains a frame of `n` bytes (with its header) lies in to the driver.
    fn deliver(&mut self, n: usize, active: &mut Active, position: usize) {
        let Some(ring) = active.rings.get_mut(position) else {
            return;
        };
        let mut count: u16 = 0;
        let mut rest = n;
        for chain in &self.waiting {
            count = count.saturating_add(1);
            rest = rest.saturating_sub(chain.len);
            if rest == 0 {
                break;
            }
        }
        self.buffers
            .get()
            .write_at(NUM_BUFFERS, &count.to_le_bytes());
        let mut rest = n;
        for _ in 0..count {
            let Some(chain) = self.waiting.pop_front() else {
                break;
            };
            let used = rest.min(chain.len);
            rest -= used;
            self.buffers.advance(chain.len);
            ring.push(&active.mem, chain.head, u32::try_from(used).unwrap_or(0));
        }
    }

    /// Moves frames from the guest to the tap.
    pub fn transmit(
        &mut self,
        active: &mut Active,
        position: usize,
        tap: &Tap,
        metrics: &mut NetMetrics,
    ) {
        let features = active.features;
        active.drain(
            position,
            BUDGET,
            &mut self.spare,
            |_mem, _index, buffers| {
                match buffers {
                    Ok(buffers) => send(buffers, features, tap, metrics),
                    Err(_) => metrics.tx_bad += 1,
                }
                0
            },
        );
    }
}

/// Checks one frame and writes it to the tap. Frames the tap does not take are lost, as on a wire.
fn send(packet: &mut Buffers<'_>, features: u64, tap: &Tap, metrics: &mut NetMetrics) {
    // Nothing is answered, so the other list is free.
    let (packet, list) = (&mut packet.readable, &mut packet.writable);
    let mut raw = [0u8; HEADER];
    let got = packet.copy_to(&mut raw);
    packet.advance(HEADER);
    let len = packet.len();
    let Ok(header) = header::check(raw, len, features) else {
        metrics.tx_bad += 1;
        return;
    };
    if got < HEADER {
        metrics.tx_bad += 1;
        return;
    }
    loop {
        match packet.writev_after(tap.borrow(), &header, list) {
            Ok(_) => {
                metrics.tx_frames += 1;
                metrics.tx_bytes += len as u64;
                return;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => {
                metrics.tx_dropped += 1;
                return;
            }
        }
    }
}
