//! Frames moved by the VMM itself: straight between the tap and guest memory.
//!
//! Buffers for frames to the guest are taken from the ring ahead of the frames, as the length of
//! a frame is only known when it is there; those not used yet are given back at a pause.

use std::collections::VecDeque;
use std::io;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_MRG_RXBUF,
};

use super::header::{self, HEADER, MAX_FRAME, NUM_BUFFERS};
use super::metrics::NetMetrics;
use super::tap::Tap;
use crate::virtio::iovec::{IoVecs, MAX_PIECES, gather};
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
    buffers: IoVecs,
    mergeable: bool,
    needed: usize,
    readable: IoVecs,
    writable: IoVecs,
}

impl Frames {
    /// For a driver that negotiated `features`, on a link with `mtu`.
    #[must_use]
    pub fn new(features: u64, mtu: u16) -> Self {
        let has = |bit: u32| features.checked_shr(bit).unwrap_or(0) & 1 == 1;
        let large = has(VIRTIO_NET_F_GUEST_TSO4) || has(VIRTIO_NET_F_GUEST_TSO6);
        Frames {
            waiting: VecDeque::new(),
            buffers: IoVecs::new(),
            mergeable: has(VIRTIO_NET_F_MRG_RXBUF),
            // virtio 1.2 §5.1.6.3.1 has the driver provide this much.
            needed: if large {
                HEADER + MAX_FRAME - 4
            } else {
                HEADER + header::ETHERNET + usize::from(mtu)
            },
            readable: IoVecs::new(),
            writable: IoVecs::new(),
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
        self.buffers.clear();
    }

    /// Takes chains until a frame of any length fits.
    fn stock(&mut self, active: &mut Active, position: usize, metrics: &mut NetMetrics) -> bool {
        let Some(ring) = active.rings.get_mut(position) else {
            return false;
        };
        while self.waiting.is_empty() || (self.mergeable && self.buffers.len() < self.needed) {
            let Some(chain) = ring.pop(&active.mem) else {
                return false;
            };
            let head = chain.head_index();
            self.readable.clear();
            self.writable.clear();
            let good = gather(chain, &active.mem, &mut self.readable, &mut self.writable).is_ok()
                && self.writable.len() >= if self.mergeable { HEADER } else { self.needed }
                && self.writable.pieces().len() + self.buffers.pieces().len() <= MAX_PIECES;
            if !good || self.buffers.append(&self.writable).is_err() {
                metrics.rx_bad_buffers += 1;
                ring.push(&active.mem, head, 0);
                continue;
            }
            self.waiting.push_back(Waiting {
                head,
                pieces: self.writable.pieces().len(),
                len: self.writable.len(),
            });
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
            // SAFETY: `active.mem` keeps guest memory mapped.
            match unsafe { self.buffers.readv_first(tap.borrow(), pieces) } {
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
        // SAFETY: `active.mem` keeps guest memory mapped.
        unsafe { self.buffers.copy_in_at(NUM_BUFFERS, &count.to_le_bytes()) };
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
        let (readable, writable) = (&mut self.readable, &mut self.writable);
        active.drain(position, BUDGET, |mem, _index, chain| {
            readable.clear();
            writable.clear();
            if gather(chain, mem, readable, writable).is_ok() {
                send(readable, writable, features, tap, metrics);
            } else {
                metrics.tx_bad += 1;
            }
            0
        });
    }
}

/// Checks one frame and writes it to the tap. Frames the tap does not take are lost, as on a wire.
fn send(
    packet: &mut IoVecs,
    list: &mut IoVecs,
    features: u64,
    tap: &Tap,
    metrics: &mut NetMetrics,
) {
    let mut raw = [0u8; HEADER];
    // SAFETY: the caller's `active.mem` keeps guest memory mapped.
    let got = unsafe { packet.copy_out(&mut raw) };
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
        // SAFETY: as above.
        match unsafe { packet.writev_after(tap.borrow(), &header, list) } {
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
