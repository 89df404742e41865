//! Placing inodes into blocks: a run of metadata blocks that is filled in memory and then
//! appended to the image as a whole.
//!
//! An inode with its attributes and its inline tail is one record. A record of at most a block
//! never crosses a block boundary, because inline data must not (kernel: `erofs_map_blocks`).

use super::format::{BLOCK, SLOT, SLOTS_PER_BLOCK};

/// A run of metadata blocks.
#[derive(Debug)]
pub(super) struct MetaRun {
    bytes: Vec<u8>,
    /// `free[n]`: blocks whose last `n` slots are free.
    free: Vec<Vec<usize>>,
}

impl MetaRun {
    pub(super) fn new() -> Self {
        Self {
            bytes: Vec::new(),
            free: vec![Vec::new(); SLOTS_PER_BLOCK],
        }
    }

    /// Length so far, a multiple of the block size.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Finds room for `len` bytes and returns the number of the first slot in the run: in the
    /// fullest block that has the room, else in new blocks.
    pub(super) fn reserve(&mut self, len: usize) -> usize {
        let need = len.div_ceil(SLOT);
        let found = self
            .free
            .iter_mut()
            .enumerate()
            .skip(need)
            .find_map(|(free, blocks)| Some((free, blocks.pop()?)));
        let (slot, left) = match found {
            Some((free, block)) => ((block + 1) * SLOTS_PER_BLOCK - free, free - need),
            None => {
                let slot = self.bytes.len() / SLOT;
                let blocks = need.div_ceil(SLOTS_PER_BLOCK).max(1);
                self.bytes.resize(self.bytes.len() + blocks * BLOCK, 0);
                (slot, blocks * SLOTS_PER_BLOCK - need)
            }
        };
        if let Some(list) = self.free.get_mut(left)
            && left > 0
        {
            list.push((slot + need + left) / SLOTS_PER_BLOCK - 1);
        }
        slot
    }

    /// Writes a record into room that [`Self::reserve`] gave for at least its length.
    pub(super) fn fill(&mut self, slot: usize, record: &[u8]) {
        self.patch(slot, 0, record);
    }

    /// Overwrites bytes of a record.
    pub(super) fn patch(&mut self, slot: usize, offset: usize, bytes: &[u8]) {
        let start = slot * SLOT + offset;
        let room = self.bytes.get_mut(start..start + bytes.len());
        debug_assert!(room.is_some(), "a record outside its run");
        if let Some(room) = room {
            room.copy_from_slice(bytes);
        }
    }

    /// The bytes of the run, and an empty run in its place.
    pub(super) fn take(&mut self) -> Vec<u8> {
        std::mem::replace(self, Self::new()).bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_records_share_blocks_and_never_cross() {
        let mut run = MetaRun::new();
        let mut used = vec![];
        for i in 0..2000_usize {
            let len = 64 + (i * 37) % 4033;
            let slot = run.reserve(len);
            let (first, last) = (slot * SLOT, slot * SLOT + len - 1);
            assert_eq!(first / BLOCK, last / BLOCK, "record {i} crosses");
            used.push((first, last));
        }
        used.sort_unstable();
        assert!(used.windows(2).all(|w| w[0].1 < w[1].0), "records overlap");
        assert!(used.last().unwrap().1 < run.len());
        let total: usize = used.iter().map(|(a, b)| b - a + 1).sum();
        assert!(
            total * 100 / run.len() > 90,
            "{}% used",
            total * 100 / run.len()
        );
    }

    #[test]
    fn large_records_start_a_block() {
        let mut run = MetaRun::new();
        run.reserve(64);
        assert_eq!(run.reserve(3 * BLOCK + 1), SLOTS_PER_BLOCK);
        assert_eq!(run.len(), 5 * BLOCK);
        // The rest of the last block serves a small record after the fuller first block did.
        assert_eq!(run.reserve(BLOCK - 64), 2);
        assert_eq!(run.reserve(64), 4 * SLOTS_PER_BLOCK + 1);
        assert_eq!(run.reserve(BLOCK), 5 * SLOTS_PER_BLOCK);
    }
}
