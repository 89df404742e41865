//! What every active device holds: guest memory, its rings, its interrupt, its registrations.
//!
//! The rules of notification live here once: kicks are edge-triggered and never counted, used
//! buffers are announced as EVENT_IDX asks, and a ring is looked at again after notifications are
//! switched on, so that no kick is lost (virtio 1.2 §2.7.10).

use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_queue::{DescriptorChain, Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use crate::event_loop::{EventSet, Registrar};
use crate::memory::GuestMemory;
use crate::virtio::buffers::Buffers;
use crate::virtio::device::{Activation, Interrupt, QueueState};
use crate::virtio::iovec::BufferError;

/// The most chains a device takes from one ring before it lets other devices have the thread.
pub const BUDGET: usize = 256;

/// One queue of an active device.
#[derive(Debug)]
pub struct Ring {
    /// The index the driver knows.
    pub index: u16,
    /// The ring itself.
    pub queue: Queue,
    kick: EventFd,
}

impl Ring {
    /// The next chain the driver offers. A broken ring offers none.
    pub fn pop<'m>(&mut self, mem: &'m GuestMemory) -> Option<DescriptorChain<&'m GuestMemory>> {
        self.queue.pop_descriptor_chain(mem)
    }

    /// As [`Ring::pop`]; the chain holds guest memory itself.
    pub fn pop_held(
        &mut self,
        mem: &Arc<GuestMemory>,
    ) -> Option<DescriptorChain<Arc<GuestMemory>>> {
        self.queue.pop_descriptor_chain(Arc::clone(mem))
    }

    /// Gives the chain taken last back, to be offered again.
    pub fn undo_pop(&mut self) {
        let back = self.queue.next_avail().wrapping_sub(1);
        self.queue.set_next_avail(back);
    }

    /// Hands a chain back to the driver. A head outside the table (the guest made it up) is
    /// dropped.
    pub fn push(&mut self, mem: &GuestMemory, head: u16, len: u32) {
        let _ = self.queue.add_used(mem, head, len);
    }

    /// Interrupts the driver when it asked to be notified of what was pushed since the last call.
    pub fn notify(&mut self, mem: &GuestMemory, interrupt: &dyn Interrupt) {
        if self.queue.needs_notification(mem).unwrap_or(true) {
            interrupt.signal_queue(self.index);
        }
    }

    /// Asks for no kicks while the device works the ring anyway.
    pub fn disable_notification(&mut self, mem: &GuestMemory) {
        let _ = self.queue.disable_notification(mem);
    }

    /// Asks for kicks again; true when chains came meanwhile and the ring must be looked at.
    pub fn enable_notification(&mut self, mem: &GuestMemory) -> bool {
        self.queue.enable_notification(mem).unwrap_or(false)
    }

    /// Whether chains wait that were not taken.
    #[must_use]
    pub fn waits(&self, mem: &GuestMemory) -> bool {
        let offered = self.queue.avail_idx(mem, Ordering::Acquire);
        offered.is_ok_and(|idx| idx.0 != self.queue.next_avail())
    }

    /// Looks at the chains that wait without taking them, until one is `wanted`. When none is, a
    /// kick comes with the next.
    pub fn look(
        &mut self,
        mem: &GuestMemory,
        wanted: impl Fn(DescriptorChain<&GuestMemory>) -> bool,
    ) -> bool {
        let here = self.queue.next_avail();
        let mut found = false;
        // Each chain once, and once more where chains came meanwhile: a driver that adds chains as
        // fast as they are looked at does not keep this thread.
        for _ in 0..=2 * u32::from(self.queue.size()) {
            match self.pop(mem) {
                Some(chain) => found = wanted(chain),
                None if self.enable_notification(mem) => {}
                None => break,
            }
            if found {
                break;
            }
        }
        self.queue.set_next_avail(here);
        found
    }

    /// Takes the chains there are, until `take` breaks; the number taken. The driver is asked for no
    /// kicks meanwhile, and for kicks again when no chain is left. After `budget` chains the rest
    /// waits for the ring's next turn. When `take` breaks, kicks stay off: the caller comes back by
    /// itself.
    pub fn drain<'m>(
        &mut self,
        mem: &'m GuestMemory,
        budget: usize,
        mut take: impl FnMut(&mut Ring, DescriptorChain<&'m GuestMemory>) -> ControlFlow<()>,
    ) -> usize {
        let mut taken = 0;
        loop {
            self.disable_notification(mem);
            let before = taken;
            while taken < budget {
                let Some(chain) = self.pop(mem) else {
                    break;
                };
                taken += 1;
                if take(self, chain).is_break() {
                    return taken;
                }
            }
            if taken >= budget {
                self.kick_self();
                return taken;
            }
            if !self.enable_notification(mem) || taken == before {
                return taken;
            }
        }
    }

    /// Makes the event loop deliver this ring's kick again, later.
    pub fn kick_self(&self) {
        // Fails only when the counter is full, and then the descriptor is readable anyway.
        let _ = self.kick.write(1);
    }

    /// The driver's kick, for a kernel back end.
    #[must_use]
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }
}

/// The state of a device between activation and reset.
#[derive(Debug)]
pub struct Active {
    /// Guest RAM, shared with work that outlives a call.
    pub mem: Arc<GuestMemory>,
    /// Negotiated feature bits.
    pub features: u64,
    /// How to interrupt the driver.
    pub interrupt: Arc<dyn Interrupt>,
    /// Where descriptors are registered.
    pub events: Registrar,
    /// The enabled queues, in index order. Kicks carry the position here as their token.
    pub rings: Vec<Ring>,
    /// Kicks are in the event loop (they are not while a kernel back end has them).
    watching: bool,
}

impl Active {
    /// Takes an activation over, without watching kicks yet.
    #[must_use]
    pub fn new(activation: Activation) -> Self {
        Active {
            mem: Arc::new(activation.mem),
            features: activation.features,
            interrupt: activation.interrupt,
            events: activation.events,
            rings: activation
                .queues
                .into_iter()
                .map(|q| Ring {
                    index: q.index,
                    queue: q.queue,
                    kick: q.kick,
                })
                .collect(),
            watching: false,
        }
    }

    /// Puts the kicks of all rings into the event loop, token = position in `rings`.
    ///
    /// # Errors
    /// The event loop's; nothing is watched then.
    pub fn watch(&mut self) -> io::Result<()> {
        for (position, ring) in self.rings.iter().enumerate() {
            let token = u32::try_from(position).unwrap_or(u32::MAX);
            let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
            if let Err(e) = self.events.add(ring.kick.as_raw_fd(), token, edge) {
                for earlier in self.rings.iter().take(position) {
                    let _ = self.events.remove(earlier.kick.as_raw_fd());
                }
                return Err(e);
            }
        }
        self.watching = true;
        Ok(())
    }

    /// Takes the kicks out of the event loop again.
    pub fn unwatch(&mut self) {
        if std::mem::take(&mut self.watching) {
            for ring in &self.rings {
                let _ = self.events.remove(ring.kick.as_raw_fd());
            }
        }
    }

    /// Whether feature bit `bit` was negotiated.
    #[must_use]
    pub fn has_feature(&self, bit: u32) -> bool {
        self.features.checked_shr(bit).unwrap_or(0) & 1 == 1
    }

    /// The position in `rings` of the queue the driver knows as `index`.
    #[must_use]
    pub fn position(&self, index: u16) -> Option<usize> {
        self.rings.iter().position(|r| r.index == index)
    }

    /// Looks at every ring again, on the I/O thread.
    pub fn kick_all(&self) {
        for ring in &self.rings {
            ring.kick_self();
        }
    }

    /// Works the ring at `position`: `serve` gets what each chain names, with the queue's index,
    /// and says how many bytes it wrote. After `budget` chains the rest waits for the ring's next
    /// turn.
    pub fn drain<'m>(
        &'m mut self,
        position: usize,
        budget: usize,
        spare: &mut Buffers<'static>,
        mut serve: impl FnMut(&'m GuestMemory, u16, Result<&mut Buffers<'m>, BufferError>) -> usize,
    ) {
        self.drain_while(position, budget, spare, |mem, index, buffers| {
            ControlFlow::Continue(serve(mem, index, buffers))
        });
    }

    /// As [`Active::drain`], until `serve` breaks; see [`Ring::drain`].
    pub fn drain_while<'m>(
        &'m mut self,
        position: usize,
        budget: usize,
        spare: &mut Buffers<'static>,
        mut serve: impl FnMut(
            &'m GuestMemory,
            u16,
            Result<&mut Buffers<'m>, BufferError>,
        ) -> ControlFlow<usize, usize>,
    ) {
        let (mem, interrupt) = (&*self.mem, self.interrupt.as_ref());
        let Some(ring) = self.rings.get_mut(position) else {
            return;
        };
        let mut buffers = std::mem::take(spare).recycle();
        let taken = ring.drain(mem, budget, |ring, chain| {
            let head = chain.head_index();
            let gathered = buffers.gather(chain, mem);
            let served = serve(mem, ring.index, gathered.map(|_| &mut buffers));
            let (ControlFlow::Continue(written) | ControlFlow::Break(written)) = served;
            ring.push(mem, head, u32::try_from(written).unwrap_or(0));
            match served {
                ControlFlow::Continue(_) => ControlFlow::Continue(()),
                ControlFlow::Break(_) => ControlFlow::Break(()),
            }
        });
        if taken > 0 {
            ring.notify(mem, interrupt);
        }
        *spare = buffers.recycle();
    }

    /// The saved form of the rings.
    #[must_use]
    pub fn save(&self) -> Vec<QueueState> {
        self.rings
            .iter()
            .map(|r| QueueState::capture(r.index, &r.queue))
            .collect()
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.unwatch();
    }
}
