//! Lists of guest memory: what is in them, what is refused, and what system calls see.

use proptest::prelude::*;
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes, GuestMemoryMmap};

use super::*;
use crate::virtio::buffers::Buffers;

const WRITE: u16 = 2;

fn memory() -> GuestMemoryMmap<()> {
    // Two regions with a hole between them.
    GuestMemoryMmap::from_ranges(&[
        (GuestAddress(0), 0x10_0000),
        (GuestAddress(0x20_0000), 0x1000),
    ])
    .unwrap()
}

fn chain_of<'m>(
    mem: &'m GuestMemoryMmap<()>,
    descriptors: &[(u64, u32, u16)],
) -> Result<(Buffers<'m>, Option<GuestAddress>), BufferError> {
    let queue = MockSplitQueue::new(mem, 16);
    let raw: Vec<_> = descriptors
        .iter()
        .map(|&(addr, len, flags)| RawDescriptor::from(Descriptor::new(addr, len, flags, 0)))
        .collect();
    let chain = queue.build_desc_chain(&raw).unwrap();
    let mut buffers = Buffers::default();
    buffers.gather(chain, mem).map(|last| (buffers, last))
}

#[test]
fn pieces_are_where_the_guest_put_them() {
    let mem = memory();
    mem.write_slice(b"hello ", GuestAddress(0x8000)).unwrap();
    mem.write_slice(b"world", GuestAddress(0x20_0000)).unwrap();
    let (mut buffers, last) = chain_of(
        &mem,
        &[
            (0x8000, 6, 0),
            (0x20_0000, 5, 0),
            (0x9000, 3, WRITE),
            (0xa000, 2, WRITE),
            (0xb000, 0, WRITE),
        ],
    )
    .unwrap();
    let mut text = [0u8; 32];
    let n = buffers.readable.copy_to(&mut text);
    assert_eq!(&text[..n], b"hello world");
    assert_eq!(last, Some(GuestAddress(0xa001)));
    buffers.writable.truncate(4);
    buffers.writable.advance(1);
    assert_eq!(buffers.writable.copy_from(b"abcdef"), 3);
    assert_eq!(buffers.writable.write_at(1, b"B"), 1);
    assert_eq!(buffers.writable.write_at(3, b"no room"), 0);
    let mut at = [0u8; 3];
    mem.read_slice(&mut at, GuestAddress(0x9000)).unwrap();
    assert_eq!(&at, b"\0aB");
    let mut at = [0u8; 2];
    mem.read_slice(&mut at, GuestAddress(0xa000)).unwrap();
    assert_eq!(&at, b"c\0");
}

#[test]
fn what_is_not_guest_memory_is_refused() {
    let mem = memory();
    for (addr, len) in [
        (0x10_0000, 1),
        (0xf_ffff, 2),
        (0x20_0fff, 2),
        (u64::MAX, 1),
        (u64::MAX - 3, 16),
        (0x8000, u32::MAX),
    ] {
        assert!(
            matches!(
                chain_of(&mem, &[(addr, len, 0)]),
                Err(BufferError::OutOfMemory { .. })
            ),
            "{addr:#x}+{len:#x}"
        );
    }
}

#[test]
fn readable_after_writable_is_refused() {
    let mem = memory();
    assert_eq!(
        chain_of(&mem, &[(0x8000, 6, WRITE), (0x9000, 1, 0)]).unwrap_err(),
        BufferError::ReadableAfterWritable
    );
}

#[test]
fn a_held_list_keeps_its_memory_mapped() {
    let mem = Arc::new(memory());
    mem.write_slice(b"still here", GuestAddress(0x8000))
        .unwrap();
    let mut held = HeldIoVecs::new(Arc::clone(&mem));
    held.with(|mem, list| list.push(mem, GuestAddress(0x8000), 10, Permissions::Read))
        .unwrap();
    drop(mem);
    held.advance(6);
    let mut text = [0u8; 4];
    assert_eq!(held.get().copy_to(&mut text), 4);
    assert_eq!(&text, b"here");
}

#[test]
fn only_whole_pages_are_given_back() {
    let mem = memory();
    mem.write_slice(&[7; 0x3000], GuestAddress(0x8000)).unwrap();
    let mut list = IoVecs::new();
    for (addr, len) in [(0x8800, 0x1000), (0x9800, 0x1800)] {
        list.push(&mem, GuestAddress(addr), len, Permissions::Write)
            .unwrap();
    }
    assert_eq!(list.discard().unwrap(), 0x1000);
    let at = |addr| mem.read_obj::<u8>(GuestAddress(addr)).unwrap();
    assert_eq!(
        [at(0x8fff), at(0x9fff), at(0xa000), at(0xafff)],
        [7, 7, 0, 0]
    );
}

proptest! {
    #[test]
    fn advance_and_truncate_keep_the_sum(
        lens in proptest::collection::vec(0u32..100, 1..12),
        front in 0usize..1300, keep in 0usize..1300,
    ) {
        let mem = memory();
        let mut segments = IoVecs::new();
        for (i, len) in lens.iter().enumerate() {
            let addr = GuestAddress(0x8000 + 0x1000 * i as u64);
            segments.push(&mem, addr, *len, Permissions::Read).unwrap();
        }
        let total: usize = lens.iter().map(|l| *l as usize).sum();
        segments.advance(front);
        prop_assert_eq!(segments.len(), total.saturating_sub(front));
        segments.truncate(keep);
        prop_assert_eq!(segments.len(), total.saturating_sub(front).min(keep));
        let sum: usize = segments.pieces().iter().map(|p| p.iov_len).sum();
        prop_assert_eq!(sum, segments.len());
    }

    #[test]
    fn any_descriptors_are_either_inside_or_refused(
        raw in proptest::collection::vec((any::<u64>(), any::<u32>(), any::<u16>()), 1..8),
    ) {
        let mem = memory();
        let descriptors: Vec<_> =
            raw.iter().map(|&(a, l, f)| (a, l, f & WRITE)).collect();
        if let Ok((buffers, _)) = chain_of(&mem, &descriptors) {
            let total = buffers.readable.len() + buffers.writable.len();
            prop_assert!(total <= 0x10_1000 * descriptors.len());
        }
    }
}
