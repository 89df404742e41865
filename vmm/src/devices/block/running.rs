//! An active disk: requests taken from the rings, jobs in flight, answers given back.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use virtio_bindings::virtio_blk::VIRTIO_BLK_ID_BYTES;
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress};

use super::backing::{Backing, Place};
use super::engine::Engine;
use super::job::{Completion, Job, MAX_JOBS, Operation};
use super::metrics::BlockMetrics;
use super::request::{Action, Disk, Malformed, Request, STATUS_IOERR, STATUS_OK};
use crate::memory::GuestMemory;
use crate::virtio::iovec::HeldIoVecs;
use crate::virtio::queue::{Active, BUDGET, Ring};

/// What is behind the end of a file.
const ZEROES: [u8; 4096] = [0; 4096];

/// An active disk.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) active: Active,
    requests: Requests,
}

/// The requests taken from the rings.
#[derive(Debug)]
struct Requests {
    engine: Engine,
    backing: Arc<Backing>,
    disk: Disk,
    write_through: bool,
    /// Jobs the engine has.
    in_flight: usize,
    /// Rings with used buffers the driver has not been notified of yet.
    used: Vec<bool>,
    /// A ring was left with chains in it because there were as many jobs as there may be.
    starved: bool,
    done: Vec<Completion>,
}

/// Where a request came from, and its answer goes.
struct Origin<'a> {
    mem: &'a Arc<GuestMemory>,
    ring: &'a mut Ring,
    position: usize,
}

impl Running {
    /// An idle one.
    pub(super) fn new(
        active: Active,
        engine: Engine,
        backing: Arc<Backing>,
        disk: Disk,
        write_through: bool,
    ) -> Self {
        Running {
            requests: Requests {
                engine,
                backing,
                disk,
                write_through,
                in_flight: 0,
                used: vec![false; active.rings.len()],
                starved: false,
                done: Vec::new(),
            },
            active,
        }
    }

    /// No job is in flight.
    pub(super) fn idle(&self) -> bool {
        self.requests.in_flight == 0
    }

    /// Waits until a job may have finished.
    pub(super) fn wait(&self, deadline: Instant) -> io::Result<()> {
        self.requests.engine.wait(deadline)
    }

    /// Takes requests from a ring, as many as there may be jobs.
    pub(super) fn process(&mut self, position: usize, serial: &str, metrics: &mut BlockMetrics) {
        let (mem, requests) = (&self.active.mem, &mut self.requests);
        let Some(ring) = self.active.rings.get_mut(position) else {
            return;
        };
        // Where there is no room, completions look at the rings again; until then kicks are of no
        // use.
        if requests.is_full() {
            return;
        }
        ring.drain(mem, BUDGET, |ring, chain| {
            let origin = Origin {
                mem,
                ring,
                position,
            };
            requests.take(origin, chain, serial, metrics);
            match requests.is_full() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
    }

    /// Interrupts the driver for rings with news.
    fn notify(&mut self) {
        for (ring, used) in self.active.rings.iter_mut().zip(&mut self.requests.used) {
            if std::mem::take(used) {
                ring.notify(&self.active.mem, self.active.interrupt.as_ref());
            }
        }
    }

    /// After requests were taken: starts them, and handles those done at once (cached data). True
    /// when rings have to be looked at again because jobs have finished.
    pub(super) fn launch(&mut self, metrics: &mut BlockMetrics) -> bool {
        self.pump(metrics);
        let requests = &mut self.requests;
        requests.in_flight < MAX_JOBS && std::mem::take(&mut requests.starved)
    }

    /// Starts what is queued and handles what is finished. Afterwards every job in flight will
    /// signal the engine's descriptor.
    pub(super) fn pump(&mut self, metrics: &mut BlockMetrics) {
        loop {
            // When the kernel refuses, the entries stay queued; the next event tries again.
            let submitted = self.requests.engine.submit();
            let more = self.requests.complete(&mut self.active, metrics);
            self.notify();
            if !more || submitted.is_err() {
                return;
            }
        }
    }

    pub(super) fn stop_watching(&mut self) {
        let _ = self.active.events.remove(self.requests.engine.fd());
        self.active.unwatch();
    }
}

impl Requests {
    /// Whether there are as many jobs as there may be; the rings are then looked at again later.
    fn is_full(&mut self) -> bool {
        let full = self.in_flight >= MAX_JOBS;
        self.starved |= full;
        full
    }

    /// Starts a chain as a job, or answers it at once.
    fn take(
        &mut self,
        mut origin: Origin<'_>,
        chain: DescriptorChain<&GuestMemory>,
        serial: &str,
        metrics: &mut BlockMetrics,
    ) {
        let head = chain.head_index();
        let mut data = HeldIoVecs::new(Arc::clone(origin.mem));
        let parsed = data.with(|mem, list| {
            let request = Request::parse(chain, mem, &self.disk)?;
            *list = request.data;
            Ok::<_, Malformed>((request.action, request.status))
        });
        let Ok((action, status)) = parsed else {
            metrics.malformed += 1;
            self.answer(&mut origin, head, 0);
            return;
        };
        let total = data.get().len();
        let operation = match action {
            Ok(Action::Read { offset }) if total > 0 => Operation::Read { offset },
            Ok(Action::Write { offset }) if total > 0 => Operation::Write {
                offset,
                sync: self.write_through,
            },
            Ok(Action::Flush) if !self.disk.read_only => Operation::DataSync,
            Ok(Action::Discard { offset, len }) if len > 0 => Operation::Allocate {
                mode: libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                offset,
                len,
            },
            Ok(Action::WriteZeroes { offset, len, unmap }) if len > 0 => Operation::Allocate {
                mode: libc::FALLOC_FL_KEEP_SIZE
                    | if unmap {
                        libc::FALLOC_FL_PUNCH_HOLE
                    } else {
                        libc::FALLOC_FL_ZERO_RANGE
                    },
                offset,
                len,
            },
            nothing_to_wait_for => {
                let (outcome, written) = match nothing_to_wait_for {
                    Ok(Action::GetId) => {
                        let mut id = [0u8; VIRTIO_BLK_ID_BYTES as usize];
                        for (to, from) in id.iter_mut().zip(serial.bytes()) {
                            *to = from;
                        }
                        (STATUS_OK, data.get().copy_from(&id))
                    }
                    Ok(_) => (STATUS_OK, 0),
                    Err(refusal) => {
                        metrics.refused += 1;
                        (refusal.status(), 0)
                    }
                };
                origin.set_status(status, outcome);
                self.answer(&mut origin, head, used_len(written));
                return;
            }
        };
        let job = Job {
            operation,
            data,
            now: None,
            total,
            ring: origin.position,
            head,
            status,
        };
        self.start(&mut origin, job, metrics);
    }

    /// Gives a job to the engine.
    fn start(&mut self, origin: &mut Origin<'_>, mut job: Job, metrics: &mut BlockMetrics) {
        match self.fit(&mut job) {
            Some(true) => {}
            Some(false) => return self.finish(origin, &job, STATUS_OK, metrics),
            None => return self.finish(origin, &job, STATUS_IOERR, metrics),
        }
        match self.engine.queue(job) {
            Ok(()) => self.in_flight += 1,
            Err(job) => self.finish(origin, &job, STATUS_IOERR, metrics),
        }
    }

    /// Cuts what a read moves now to what one file has, and fills in zeroes that are in no file.
    /// False when nothing is left to be read, `None` when it is beyond the disk's end.
    fn fit(&self, job: &mut Job) -> Option<bool> {
        let Operation::Read { mut offset } = job.operation else {
            return Some(true);
        };
        job.now = None;
        loop {
            let left = job.data.get().len();
            if left == 0 {
                return Some(false);
            }
            let at_most = |len: u64| usize::try_from(len).map_or(left, |len| len.min(left));
            match self.backing.locate(offset)? {
                Place::File { len, .. } => {
                    let len = at_most(len);
                    job.now = (len < left).then(|| job.data.first(len));
                    job.operation = Operation::Read { offset };
                    return Some(true);
                }
                Place::Zeroes { len } => {
                    // A part's padding: less than a block of a file system.
                    let len = at_most(len).min(ZEROES.len());
                    let filled = job.data.get().copy_from(ZEROES.get(..len)?);
                    job.data.advance(filled);
                    offset = offset.checked_add(u64::try_from(filled).ok()?)?;
                }
            }
        }
    }

    /// Handles what the engine finished; true when something was queued again.
    fn complete(&mut self, active: &mut Active, metrics: &mut BlockMetrics) -> bool {
        let mut more = false;
        let mut done = std::mem::take(&mut self.done);
        self.engine.reap(&mut done);
        for Completion { mut job, result } in done.drain(..) {
            self.in_flight -= 1;
            let Some(ring) = active.rings.get_mut(job.ring) else {
                continue;
            };
            let origin = &mut Origin {
                mem: &active.mem,
                ring,
                position: job.ring,
            };
            let left = job.data.get().len();
            match (job.operation, usize::try_from(result)) {
                (Operation::Read { offset } | Operation::Write { offset, .. }, Ok(moved))
                    if moved > 0 && moved < left =>
                {
                    // Cut short: the rest is a job again.
                    job.data.advance(moved);
                    let offset = offset.saturating_add(moved as u64);
                    job.operation = match job.operation {
                        Operation::Write { sync, .. } => Operation::Write { offset, sync },
                        _ => Operation::Read { offset },
                    };
                    self.start(origin, job, metrics);
                    more = true;
                }
                (Operation::Read { .. } | Operation::Write { .. }, Ok(moved)) => {
                    // Nothing moved: the file became shorter than it was.
                    let ok = moved >= left;
                    let status = if ok { STATUS_OK } else { STATUS_IOERR };
                    self.finish(origin, &job, status, metrics);
                }
                (_, Ok(_)) => self.finish(origin, &job, STATUS_OK, metrics),
                (Operation::Allocate { mode, offset, len }, Err(_))
                    if mode & libc::FALLOC_FL_ZERO_RANGE != 0 && result == -libc::EOPNOTSUPP =>
                {
                    // A hole reads as zeroes as well (tmpfs knows holes, and no zero ranges).
                    job.operation = Operation::Allocate {
                        mode: libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                        offset,
                        len,
                    };
                    self.start(origin, job, metrics);
                    more = true;
                }
                (_, Err(_)) if result == -libc::EINTR => {
                    self.start(origin, job, metrics);
                    more = true;
                }
                (_, Err(_)) => self.finish(origin, &job, STATUS_IOERR, metrics),
            }
        }
        self.done = done;
        more
    }

    fn finish(
        &mut self,
        origin: &mut Origin<'_>,
        job: &Job,
        status: u8,
        metrics: &mut BlockMetrics,
    ) {
        let ok = status == STATUS_OK;
        if !ok {
            metrics.failed += 1;
        }
        let written = match job.operation {
            Operation::Read { .. } if ok => {
                metrics.reads += 1;
                metrics.read_bytes += job.total as u64;
                job.total
            }
            Operation::Write { .. } if ok => {
                metrics.writes += 1;
                metrics.written_bytes += job.total as u64;
                0
            }
            Operation::DataSync if ok => {
                metrics.flushes += 1;
                0
            }
            Operation::Allocate { .. } if ok => {
                metrics.discards += 1;
                0
            }
            _ => 0,
        };
        origin.set_status(job.status, status);
        self.answer(origin, job.head, used_len(written));
    }

    fn answer(&mut self, origin: &mut Origin<'_>, head: u16, len: u32) {
        origin.ring.push(origin.mem, head, len);
        if let Some(used) = self.used.get_mut(origin.position) {
            *used = true;
        }
    }
}

impl Origin<'_> {
    fn set_status(&self, at: GuestAddress, status: u8) {
        // Fails only outside guest memory, where `Request::parse` lets no status be.
        let _ = self.mem.write_obj(status, at);
    }
}

/// The length written, with the status byte.
fn used_len(data: usize) -> u32 {
    u32::try_from(data).unwrap_or(u32::MAX).saturating_add(1)
}
