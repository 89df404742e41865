//! The region's blocks: which are plugged, how many are wanted, and what a request does to them.
//! Pure: it moves no memory, but says which ranges the guest has given up.

use std::ops::Range;

use super::request::{Blocks, Request, Response, State};

/// The unit in which memory comes and goes: the guest's huge pages, and the host's.
pub const BLOCK: u64 = 2 << 20;
/// Linux adds memory in sections of this size, and may leave some of one unused: so much room is
/// left beyond what is wanted (virtio 1.2 §5.15.4, usable_region_size).
pub const SECTION: u64 = 128 << 20;

/// The device's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    addr: u64,
    size: u64,
    usable: u64,
    requested: u64,
    plugged: u64,
    /// One bit per block.
    bits: Vec<u64>,
}

/// What a request came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The answer.
    pub response: Response,
    /// Guest addresses whose content may go.
    pub freed: Vec<Range<u64>>,
}

impl From<Response> for Outcome {
    fn from(response: Response) -> Self {
        Outcome {
            response,
            freed: Vec::new(),
        }
    }
}

impl Region {
    /// Nothing is plugged and nothing wanted. `addr` and `size` are multiples of [`BLOCK`].
    #[must_use]
    pub fn new(addr: u64, size: u64) -> Self {
        let size = size / BLOCK * BLOCK;
        let words = (size / BLOCK).div_ceil(64);
        Region {
            addr,
            size,
            usable: 0,
            requested: 0,
            plugged: 0,
            bits: vec![0; usize::try_from(words).unwrap_or(0)],
        }
    }

    /// Its first address.
    #[must_use]
    pub fn addr(&self) -> u64 {
        self.addr
    }

    /// Its size.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How much of it, from its beginning, the guest may plug blocks in.
    #[must_use]
    pub fn usable(&self) -> u64 {
        self.usable
    }

    /// How much the guest should have.
    #[must_use]
    pub fn requested(&self) -> u64 {
        self.requested
    }

    /// How much it has.
    #[must_use]
    pub fn plugged(&self) -> u64 {
        self.plugged
    }

    /// What `request` needs of the region: as much, and room for whole sections. Never less than
    /// is usable now, as blocks may be plugged there (virtio 1.2 §5.15.5.2).
    #[must_use]
    pub fn usable_for(&self, requested: u64) -> u64 {
        let room = match requested {
            0 => 0,
            some => some.next_multiple_of(SECTION).saturating_add(SECTION),
        };
        room.min(self.size).max(self.usable)
    }

    /// Changes how much is wanted; the driver finds it in configuration space.
    pub fn request(&mut self, bytes: u64) {
        let bytes = (bytes / BLOCK * BLOCK).min(self.size);
        self.usable = self.usable_for(bytes);
        self.requested = bytes;
    }

    /// Does what the driver asks.
    pub fn handle(&mut self, request: Request) -> Outcome {
        match request {
            Request::Plug(blocks) => self.plug(blocks).into(),
            Request::Unplug(blocks) => self.unplug(blocks),
            Request::UnplugAll => self.unplug_all(),
            Request::State(blocks) => match self.indices(blocks) {
                None => Response::Error.into(),
                Some(range) => Response::State(self.state(range)).into(),
            },
        }
    }

    fn plug(&mut self, blocks: Blocks) -> Response {
        let Some(range) = self.indices(blocks) else {
            return Response::Error;
        };
        if self.state(range.clone()) != State::Unplugged {
            return Response::Error;
        }
        let more = (range.end - range.start) * BLOCK;
        // The driver may act on an older size; it never gets more than is requested now.
        if self.plugged.saturating_add(more) > self.requested {
            return Response::Nack;
        }
        range.for_each(|index| self.set(index, true));
        self.plugged += more;
        Response::Ack
    }

    fn unplug(&mut self, blocks: Blocks) -> Outcome {
        let Some(range) = self.indices(blocks) else {
            return Response::Error.into();
        };
        if self.state(range.clone()) != State::Plugged {
            return Response::Error.into();
        }
        let freed = vec![self.addresses(&range)];
        self.plugged -= (range.end - range.start) * BLOCK;
        range.for_each(|index| self.set(index, false));
        Outcome {
            response: Response::Ack,
            freed,
        }
    }

    fn unplug_all(&mut self) -> Outcome {
        let freed = self.runs();
        self.bits.fill(0);
        self.plugged = 0;
        self.usable = 0;
        self.usable = self.usable_for(self.requested);
        Outcome {
            response: Response::Ack,
            freed,
        }
    }

    /// The runs of plugged blocks, as addresses.
    #[must_use]
    pub fn runs(&self) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for index in (0..self.size / BLOCK).filter(|index| self.get(*index)) {
            let block = self.addresses(&(index..index + 1));
            match runs.last_mut() {
                Some(run) if run.end == block.start => run.end = block.end,
                _ => runs.push(block),
            }
        }
        runs
    }

    /// The blocks' numbers, if all of them lie in the usable part.
    fn indices(&self, blocks: Blocks) -> Option<Range<u64>> {
        let offset = blocks.addr.checked_sub(self.addr)?;
        let end = offset.checked_add(u64::from(blocks.count) * BLOCK)?;
        if blocks.count == 0 || offset % BLOCK != 0 || end > self.usable {
            return None;
        }
        Some(offset / BLOCK..end / BLOCK)
    }

    fn addresses(&self, indices: &Range<u64>) -> Range<u64> {
        self.addr + indices.start * BLOCK..self.addr + indices.end * BLOCK
    }

    fn state(&self, range: Range<u64>) -> State {
        let plugged = range.clone().filter(|index| self.get(*index)).count() as u64;
        match plugged {
            0 => State::Unplugged,
            n if n == range.end - range.start => State::Plugged,
            _ => State::Mixed,
        }
    }

    fn get(&self, index: u64) -> bool {
        let word = usize::try_from(index / 64)
            .ok()
            .and_then(|at| self.bits.get(at));
        word.is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    fn set(&mut self, index: u64, on: bool) {
        let word = usize::try_from(index / 64)
            .ok()
            .and_then(|at| self.bits.get_mut(at));
        if let Some(word) = word {
            let bit = 1 << (index % 64);
            *word = if on { *word | bit } else { *word & !bit };
        }
    }

    /// As `save` has written it: runs of plugged blocks. `None` when they cannot be.
    #[must_use]
    pub fn restore(addr: u64, size: u64, requested: u64, runs: &[Range<u64>]) -> Option<Self> {
        let mut region = Region::new(addr, size);
        region.request(requested);
        for run in runs {
            let (start, end) = (run.start.checked_sub(addr)?, run.end.checked_sub(addr)?);
            if start >= end || start % BLOCK != 0 || end % BLOCK != 0 || end > region.size {
                return None;
            }
            for index in start / BLOCK..end / BLOCK {
                if region.get(index) {
                    return None;
                }
                region.set(index, true);
            }
            region.plugged += end - start;
            region.usable = region.usable.max(end);
        }
        Some(region)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ADDR: u64 = 4 << 30;

    fn blocks(first: u64, count: u16) -> Blocks {
        Blocks {
            addr: ADDR + first * BLOCK,
            count,
        }
    }

    #[test]
    fn memory_comes_up_to_what_is_wanted_and_goes_again() {
        let mut region = Region::new(ADDR, 1 << 30);
        assert_eq!(
            region.handle(Request::Plug(blocks(0, 1))).response,
            Response::Error
        );
        region.request(10 * BLOCK + 5);
        assert_eq!(
            (region.requested(), region.usable()),
            (10 * BLOCK, 2 * SECTION)
        );
        let mut ask = |request| region.handle(request).response;
        assert_eq!(ask(Request::Plug(blocks(0, 8))), Response::Ack);
        assert_eq!(ask(Request::Plug(blocks(7, 2))), Response::Error);
        assert_eq!(ask(Request::Plug(blocks(8, 3))), Response::Nack);
        assert_eq!(ask(Request::Plug(blocks(20, 2))), Response::Ack);
        assert_eq!(
            ask(Request::State(blocks(0, 8))),
            Response::State(State::Plugged)
        );
        assert_eq!(
            ask(Request::State(blocks(8, 3))),
            Response::State(State::Unplugged)
        );
        assert_eq!(
            ask(Request::State(blocks(0, 100))),
            Response::State(State::Mixed)
        );
        for bad in [
            Blocks {
                addr: ADDR + 1,
                count: 1,
            },
            Blocks {
                addr: ADDR - BLOCK,
                count: 1,
            },
            Blocks {
                addr: u64::MAX - BLOCK + 1,
                count: 2,
            },
            blocks(0, 0),
            blocks(127, 2),
        ] {
            assert_eq!(ask(Request::State(bad)), Response::Error, "{bad:?}");
        }
        let gone = region.handle(Request::Unplug(blocks(2, 6)));
        assert_eq!(gone.response, Response::Ack);
        let freed = ADDR + 2 * BLOCK..ADDR + 8 * BLOCK;
        assert_eq!(gone.freed, std::slice::from_ref(&freed));
        assert_eq!(region.plugged(), 4 * BLOCK);
        assert_eq!(
            region.handle(Request::Unplug(blocks(2, 1))).response,
            Response::Error
        );
        let saved = Region::restore(ADDR, 1 << 30, 10 * BLOCK, &region.runs()).unwrap();
        assert_eq!(saved, region);
        let all = region.handle(Request::UnplugAll);
        assert_eq!(
            all.freed,
            [ADDR..ADDR + 2 * BLOCK, ADDR + 20 * BLOCK..ADDR + 22 * BLOCK]
        );
        assert_eq!(region.plugged(), 0);
    }

    #[test]
    fn the_usable_part_keeps_what_is_plugged_and_ends_with_the_region() {
        let mut region = Region::new(ADDR, 300 << 20);
        region.request(u64::MAX);
        assert_eq!(
            (region.requested(), region.usable()),
            (300 << 20, 300 << 20)
        );
        region.request(0);
        assert_eq!(region.usable(), 300 << 20);
        region.handle(Request::UnplugAll);
        assert_eq!(region.usable(), 0);
        for runs in [
            &[(ADDR, ADDR + 1)][..],
            &[(ADDR, ADDR)],
            &[(0, BLOCK)],
            &[(ADDR, ADDR + (302 << 20))],
            &[(ADDR, ADDR + BLOCK), (ADDR, ADDR + BLOCK)],
        ] {
            let runs: Vec<_> = runs.iter().map(|(start, end)| *start..*end).collect();
            assert_eq!(Region::restore(ADDR, 300 << 20, 0, &runs), None, "{runs:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_plugged_never_exceeds_what_is_wanted_and_is_always_counted(
            steps in proptest::collection::vec((0u8..5, 0u64..160, 0u16..40), 0..80)
        ) {
            let mut region = Region::new(ADDR, 300 << 20);
            let mut most = 0;
            for (what, first, count) in steps {
                let request = match what {
                    0 => Request::Plug(blocks(first, count)),
                    1 => Request::Unplug(blocks(first, count)),
                    2 if count == 0 => Request::UnplugAll,
                    3 => {
                        region.request(first * BLOCK);
                        most = most.max(region.requested());
                        continue;
                    }
                    _ => Request::State(blocks(first, count)),
                };
                let before = region.plugged();
                let outcome = region.handle(request);
                let freed: u64 = outcome.freed.iter().map(|r| r.end - r.start).sum();
                let counted: u64 = region.runs().iter().map(|r| r.end - r.start).sum();
                prop_assert_eq!(counted, region.plugged());
                prop_assert!(region.plugged() <= most);
                if freed > 0 {
                    prop_assert_eq!(before - freed, region.plugged());
                }
                prop_assert!(region.runs().last().is_none_or(|r| r.end <= ADDR + region.usable()));
            }
        }
    }
}
