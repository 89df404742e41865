//! Guest memory: where it lies, how it is made, how it is written down and mapped again.
//!
//! Registering it with KVM is in `vm`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress,
};

use crate::arch::x86_64::layout;

/// The guest's RAM as every part of the VMM holds it: a cheap clone of one set of mappings.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;

/// The unit in which memory is looked at when it is written down.
const PAGE: usize = 4096;
/// How much is read from guest memory at a time when it is written down.
const CHUNK: usize = 64 * 1024;

/// Why guest memory could not be made or written.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The kernel gave no address space.
    #[error("mapping {size} bytes of guest memory: {source}")]
    Map {
        /// Size of the region.
        size: u64,
        /// The system's answer.
        #[source]
        source: MmapRegionError,
    },
    /// The size does not fit the address map.
    #[error("guest memory of {0} bytes does not fit the address map")]
    Size(u64),
    /// A memory file is smaller than the memory it should hold.
    #[error("the memory file has {actual} bytes, the snapshot's memory {wanted}: it is cut short")]
    ShortFile {
        /// Bytes the snapshot has.
        wanted: u64,
        /// Bytes the file has.
        actual: u64,
    },
    /// Reading or writing the memory file failed.
    #[error("{attempted} the memory file: {source}")]
    File {
        /// What was attempted.
        attempted: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Guest memory could not be read back.
    #[error("reading guest memory: {0}")]
    Read(#[source] vm_memory::GuestMemoryError),
}

/// The ranges of RAM for `size` bytes: one, or two around the hole below 4 GiB.
#[must_use]
pub fn ranges(size: u64) -> Vec<(u64, u64)> {
    if size <= layout::MMIO_START {
        vec![(0, size)]
    } else {
        vec![
            (0, layout::MMIO_START),
            (layout::ABOVE_4G, size - layout::MMIO_START),
        ]
    }
}

fn region(
    base: u64,
    size: u64,
    backing: Option<FileOffset>,
) -> Result<GuestRegionMmap<()>, MemoryError> {
    let len = usize::try_from(size).map_err(|_| MemoryError::Size(size))?;
    let anonymous = if backing.is_none() {
        libc::MAP_ANONYMOUS
    } else {
        0
    };
    let mut builder = MmapRegionBuilder::<()>::new(len)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        // NORESERVE: a guest's size is a limit, not a demand; the pod's cgroup bounds its use.
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_NORESERVE | anonymous);
    if let Some(offset) = backing {
        builder = builder.with_file_offset(offset);
    }
    let mapping = builder
        .build()
        .map_err(|source| MemoryError::Map { size, source })?;
    GuestRegionMmap::new(mapping, GuestAddress(base)).ok_or(MemoryError::Size(size))
}

fn collect(regions: Vec<GuestRegionMmap<()>>, size: u64) -> Result<GuestMemory, MemoryError> {
    GuestMemory::from_regions(regions).map_err(|_| MemoryError::Size(size))
}

/// New, empty guest memory.
///
/// # Errors
/// When the host has no address space for it.
pub fn anonymous(size: u64) -> Result<GuestMemory, MemoryError> {
    let regions = ranges(size)
        .into_iter()
        .map(|(base, len)| region(base, len, None))
        .collect::<Result<_, _>>()?;
    collect(regions, size)
}

/// Where memory that is added later lies: beyond the RAM of `size` bytes a machine boots with, and
/// above 4 GiB.
#[must_use]
pub fn growth_base(size: u64) -> u64 {
    let end = ranges(size).last().map_or(0, |(base, len)| base + len);
    end.max(layout::ABOVE_4G)
        .next_multiple_of(layout::GROWTH_ALIGN)
}

/// `mem` with room for `size` bytes more at `base`: address space only, until the guest has it.
///
/// # Errors
/// When the host has no address space for it.
pub fn with_growth(mem: &GuestMemory, base: u64, size: u64) -> Result<GuestMemory, MemoryError> {
    let added = Arc::new(region(base, size, None)?);
    mem.insert_region(added)
        .map_err(|_| MemoryError::Size(size))
}

/// Guest memory as a snapshot's file has it, private and copy-on-write: nothing is read before
/// the guest touches it, and nothing is written back.
///
/// # Errors
/// When the file is too short or cannot be mapped.
pub fn from_file(file: &File, size: u64) -> Result<GuestMemory, MemoryError> {
    let actual = file
        .metadata()
        .map_err(|source| MemoryError::File {
            attempted: "looking at",
            source,
        })?
        .len();
    if actual < size {
        return Err(MemoryError::ShortFile {
            wanted: size,
            actual,
        });
    }
    let mut regions = Vec::new();
    let mut offset = 0;
    for (base, len) in ranges(size) {
        let file = file.try_clone().map_err(|source| MemoryError::File {
            attempted: "duplicating",
            source,
        })?;
        regions.push(region(base, len, Some(FileOffset::new(file, offset)))?);
        offset += len;
    }
    collect(regions, size)
}

/// The size of all RAM.
#[must_use]
pub fn total(mem: &GuestMemory) -> u64 {
    mem.iter().map(GuestMemoryRegion::len).sum()
}

/// Writes all RAM to `file`, leaving pages of zeros as holes. The guest must be paused.
///
/// # Errors
/// When the file cannot be written.
pub fn write_to_file(mem: &GuestMemory, file: &File) -> Result<(), MemoryError> {
    let write_err = |source| MemoryError::File {
        attempted: "writing",
        source,
    };
    // First to nothing, so that an old content cannot show through a hole.
    file.set_len(0).map_err(write_err)?;
    file.set_len(total(mem)).map_err(write_err)?;
    let mut buffer = vec![0u8; CHUNK];
    let mut offset = 0u64;
    for region in mem.iter() {
        let mut done = 0u64;
        while done < region.len() {
            let want = usize::try_from(region.len() - done)
                .unwrap_or(CHUNK)
                .min(CHUNK);
            let Some(chunk) = buffer.get_mut(..want) else {
                break;
            };
            region
                .read_slice(chunk, MemoryRegionAddress(done))
                .map_err(MemoryError::Read)?;
            for (start, run) in runs_of_data(chunk) {
                file.write_all_at(run, offset + done + start as u64)
                    .map_err(write_err)?;
            }
            done += want as u64;
        }
        offset += region.len();
    }
    Ok(())
}

/// The runs of pages in `chunk` that hold anything but zeros, with their offsets.
fn runs_of_data(chunk: &[u8]) -> Vec<(usize, &[u8])> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (index, page) in chunk.chunks(PAGE).enumerate() {
        if is_zero(page) {
            continue;
        }
        let start = index * PAGE;
        match runs.last_mut() {
            Some((_, end)) if *end == start => *end = start + page.len(),
            _ => runs.push((start, start + page.len())),
        }
    }
    runs.into_iter()
        .filter_map(|(s, e)| chunk.get(s..e).map(|run| (s, run)))
        .collect()
}

fn is_zero(page: &[u8]) -> bool {
    let mut words = page.chunks_exact(16);
    words.all(|w| w == [0u8; 16]) && page.chunks_exact(16).remainder().iter().all(|b| *b == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_goes_around_the_hole() {
        assert_eq!(ranges(256 << 20), vec![(0, 256 << 20)]);
        assert_eq!(ranges(3 << 30), vec![(0, 3 << 30)]);
        assert_eq!(ranges(5 << 30), vec![(0, 3 << 30), (4 << 30, 2 << 30)]);
    }

    #[test]
    fn growth_lies_beyond_everything_and_both_see_the_same_ram() {
        assert_eq!(growth_base(256 << 20), 4 << 30);
        assert_eq!(growth_base(4 << 30), 5 << 30);
        assert_eq!(growth_base((4 << 30) + 1), 6 << 30);
        let mem = anonymous(4 << 20).unwrap();
        let base = growth_base(4 << 20);
        let all = with_growth(&mem, base, 1 << 40).unwrap();
        all.write_slice(b"far", GuestAddress(base + (1 << 40) - 3))
            .unwrap();
        all.write_slice(b"near", GuestAddress(0)).unwrap();
        let mut seen = [0u8; 4];
        mem.read_slice(&mut seen, GuestAddress(0)).unwrap();
        assert_eq!(&seen, b"near");
        assert!(mem.read_slice(&mut seen, GuestAddress(base)).is_err());
    }

    #[test]
    fn memory_survives_a_file_and_is_private_afterwards() {
        let size = 4 << 20;
        let mem = anonymous(size).unwrap();
        mem.write_slice(b"first", GuestAddress(0)).unwrap();
        mem.write_slice(b"across a page", GuestAddress(0x1fff8))
            .unwrap();
        mem.write_slice(b"last!", GuestAddress(size - 5)).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[0xff; 8192], 0x3000).unwrap();
        write_to_file(&mem, &file).unwrap();

        let one = from_file(&file, size).unwrap();
        let two = from_file(&file, size).unwrap();
        for copy in [&one, &two] {
            let mut all = vec![0u8; usize::try_from(size).unwrap()];
            let mut wanted = all.clone();
            copy.read_slice(&mut all, GuestAddress(0)).unwrap();
            mem.read_slice(&mut wanted, GuestAddress(0)).unwrap();
            assert!(all == wanted);
        }
        one.write_slice(b"mine", GuestAddress(0)).unwrap();
        let mut seen = [0u8; 5];
        two.read_slice(&mut seen, GuestAddress(0)).unwrap();
        assert_eq!(&seen, b"first");
        // Three pages of data (one write straddles two), so the file is nearly all hole.
        let blocks = std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
        assert!(blocks * 512 <= 64 * 1024, "{blocks} blocks");
    }

    #[test]
    fn a_short_file_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let err = from_file(&file, 2 << 20).unwrap_err();
        assert!(matches!(err, MemoryError::ShortFile { .. }));
    }

    #[test]
    fn runs_are_joined_and_zero_pages_left_out() {
        let mut chunk = vec![0u8; 5 * PAGE];
        chunk[PAGE] = 1;
        chunk[3 * PAGE - 1] = 1;
        chunk[5 * PAGE - 1] = 1;
        let runs: Vec<_> = runs_of_data(&chunk)
            .iter()
            .map(|(s, r)| (*s, r.len()))
            .collect();
        assert_eq!(runs, vec![(PAGE, 2 * PAGE), (4 * PAGE, PAGE)]);
    }
}
