//! An active disk: requests taken from the rings, jobs in flight, answers given back.

use virtio_bindings::virtio_blk::VIRTIO_BLK_ID_BYTES;

use super::engine::{Completion, Engine, MAX_JOBS, Operation};
use super::metrics::BlockMetrics;
use super::request::{Action, Disk, Request, STATUS_IOERR, STATUS_OK};
use crate::virtio::iovec::{GuestByte, IoVecs};
use crate::virtio::queue::{Active, BUDGET};

/// A request the engine works on.
#[derive(Debug)]
struct Job {
    ring: usize,
    head: u16,
    operation: Operation,
    /// What is still to be moved.
    data: IoVecs,
    total: usize,
    status: GuestByte,
}

/// An active disk. It must not be dropped with jobs in flight.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) active: Active,
    pub(super) engine: Engine,
    disk: Disk,
    write_through: bool,
    jobs: Vec<Option<Job>>,
    free: Vec<u16>,
    /// Rings with used buffers the driver was not told of yet.
    used: Vec<bool>,
    /// A ring was left with chains in it because all job numbers were taken.
    starved: bool,
    done: Vec<Completion>,
}

impl Running {
    /// An idle one.
    pub(super) fn new(active: Active, engine: Engine, disk: Disk, write_through: bool) -> Self {
        Running {
            used: vec![false; active.rings.len()],
            active,
            engine,
            disk,
            write_through,
            jobs: Vec::new(),
            free: Vec::new(),
            starved: false,
            done: Vec::new(),
        }
    }

    /// A free job number. Their table grows as it is needed: most disks of a pod, its image's
    /// layers, never have more than a few requests at a time.
    fn number(&mut self) -> Option<u16> {
        if let Some(number) = self.free.pop() {
            return Some(number);
        }
        let number = u16::try_from(self.jobs.len()).ok()?;
        if self.jobs.len() >= MAX_JOBS {
            return None;
        }
        self.jobs.push(None);
        Some(number)
    }

    /// No job is in flight.
    pub(super) fn idle(&self) -> bool {
        self.free.len() == self.jobs.len()
    }

    /// Takes requests from a ring, as many as there are job numbers.
    pub(super) fn process(&mut self, position: usize, serial: &str, metrics: &mut BlockMetrics) {
        let mut budget = BUDGET;
        loop {
            let Some(ring) = self.active.rings.get_mut(position) else {
                return;
            };
            ring.disable_notification(&self.active.mem);
            let mut progress = false;
            loop {
                let Some(number) = self.number() else {
                    // Completions look at the rings again; until then kicks are of no use.
                    self.starved = true;
                    return;
                };
                if budget == 0 {
                    self.free.push(number);
                    if let Some(ring) = self.active.rings.get(position) {
                        ring.kick_self();
                    }
                    return;
                }
                if !self.take(position, number, serial, metrics) {
                    break;
                }
                budget -= 1;
                progress = true;
            }
            let Some(ring) = self.active.rings.get_mut(position) else {
                return;
            };
            if !ring.enable_notification(&self.active.mem) || !progress {
                return;
            }
        }
    }

    /// Takes one chain and starts it as job `number`, or answers it at once and gives the number
    /// back; false when the ring has none.
    fn take(
        &mut self,
        position: usize,
        number: u16,
        serial: &str,
        metrics: &mut BlockMetrics,
    ) -> bool {
        let Some(ring) = self.active.rings.get_mut(position) else {
            self.free.push(number);
            return false;
        };
        let Some(chain) = ring.pop(&self.active.mem) else {
            self.free.push(number);
            return false;
        };
        let head = chain.head_index();
        let Ok(request) = Request::parse(chain, &self.active.mem, &self.disk) else {
            metrics.malformed += 1;
            self.free.push(number);
            self.answer(position, head, 0);
            return true;
        };
        let total = request.data.len();
        let operation = match request.action {
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
                let (status, written) = match nothing_to_wait_for {
                    Ok(Action::GetId) => {
                        let mut id = [0u8; VIRTIO_BLK_ID_BYTES as usize];
                        for (to, from) in id.iter_mut().zip(serial.bytes()) {
                            *to = from;
                        }
                        // SAFETY: `active.mem` keeps guest memory mapped.
                        (STATUS_OK, unsafe { request.data.copy_in(&id) })
                    }
                    Ok(_) => (STATUS_OK, 0),
                    Err(refusal) => {
                        metrics.refused += 1;
                        (refusal.status(), 0)
                    }
                };
                // SAFETY: as above.
                unsafe { request.status.write(status) };
                self.free.push(number);
                self.answer(position, head, used_len(written));
                return true;
            }
        };
        let job = Job {
            ring: position,
            head,
            operation,
            data: request.data,
            total,
            status: request.status,
        };
        self.start(number, job, metrics);
        true
    }

    /// Gives a job to the engine.
    fn start(&mut self, number: u16, job: Job, metrics: &mut BlockMetrics) {
        // SAFETY: the job, and with it its pieces, is kept in `jobs` until the engine reports it;
        // `active.mem` keeps the memory mapped and is dropped after the engine is idle.
        let queued = unsafe { self.engine.queue(number, job.operation, &job.data) };
        match (queued, self.jobs.get_mut(usize::from(number))) {
            (Ok(()), Some(slot)) => *slot = Some(job),
            _ => self.finish(number, &job, STATUS_IOERR, metrics),
        }
    }

    /// Handles what the engine finished; true when something was queued again.
    fn complete(&mut self, metrics: &mut BlockMetrics) -> bool {
        let mut more = false;
        let mut done = std::mem::take(&mut self.done);
        self.engine.reap(&mut done);
        for (number, result) in done.drain(..) {
            let Some(mut job) = self
                .jobs
                .get_mut(usize::from(number))
                .and_then(Option::take)
            else {
                continue;
            };
            match (job.operation, usize::try_from(result)) {
                (Operation::Read { offset } | Operation::Write { offset, .. }, Ok(moved))
                    if moved > 0 && moved < job.data.len() =>
                {
                    // Cut short: go on with the rest.
                    job.data.advance(moved);
                    let offset = offset.saturating_add(moved as u64);
                    job.operation = match job.operation {
                        Operation::Write { sync, .. } => Operation::Write { offset, sync },
                        _ => Operation::Read { offset },
                    };
                    self.start(number, job, metrics);
                    more = true;
                }
                (Operation::Read { .. } | Operation::Write { .. }, Ok(moved)) => {
                    // Nothing moved: the file became shorter than it was.
                    let ok = moved >= job.data.len();
                    let status = if ok { STATUS_OK } else { STATUS_IOERR };
                    self.finish(number, &job, status, metrics);
                }
                (_, Ok(_)) => self.finish(number, &job, STATUS_OK, metrics),
                (Operation::Allocate { mode, offset, len }, Err(_))
                    if mode & libc::FALLOC_FL_ZERO_RANGE != 0 && result == -libc::EOPNOTSUPP =>
                {
                    // A hole reads as zeroes as well (tmpfs knows holes, and no zero ranges).
                    job.operation = Operation::Allocate {
                        mode: libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                        offset,
                        len,
                    };
                    self.start(number, job, metrics);
                    more = true;
                }
                (_, Err(_)) if result == -libc::EINTR => {
                    self.start(number, job, metrics);
                    more = true;
                }
                (_, Err(_)) => self.finish(number, &job, STATUS_IOERR, metrics),
            }
        }
        self.done = done;
        self.tell();
        more
    }

    fn finish(&mut self, number: u16, job: &Job, status: u8, metrics: &mut BlockMetrics) {
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
        // SAFETY: `active.mem` keeps guest memory mapped.
        unsafe { job.status.write(status) };
        self.free.push(number);
        self.answer(job.ring, job.head, used_len(written));
    }

    fn answer(&mut self, position: usize, head: u16, len: u32) {
        if let Some(ring) = self.active.rings.get_mut(position) {
            ring.push(&self.active.mem, head, len);
        }
        if let Some(used) = self.used.get_mut(position) {
            *used = true;
        }
    }

    /// Interrupts the driver for rings with news.
    fn tell(&mut self) {
        for (ring, used) in self.active.rings.iter_mut().zip(&mut self.used) {
            if std::mem::take(used) {
                ring.notify(&self.active.mem, self.active.interrupt.as_ref());
            }
        }
    }

    /// After requests were taken: starts them, and handles those done at once (cached data). True
    /// when rings have to be looked at again because job numbers came free.
    pub(super) fn launch(&mut self, metrics: &mut BlockMetrics) -> bool {
        self.pump(metrics);
        !self.free.is_empty() && std::mem::take(&mut self.starved)
    }

    /// Starts what is queued and handles what is finished. Afterwards every job in flight will
    /// signal the engine's descriptor.
    pub(super) fn pump(&mut self, metrics: &mut BlockMetrics) {
        loop {
            // When the kernel refuses, the entries stay queued; the next event tries again.
            let submitted = self.engine.submit();
            let more = self.complete(metrics);
            if !more || submitted.is_err() {
                return;
            }
        }
    }

    pub(super) fn stop_watching(&mut self) {
        let _ = self.active.events.remove(self.engine.fd());
        self.active.unwatch();
    }
}

/// The length written, with the status byte.
fn used_len(data: usize) -> u32 {
    u32::try_from(data).unwrap_or(u32::MAX).saturating_add(1)
}
