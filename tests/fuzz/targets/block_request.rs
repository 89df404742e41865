//! A block request: any descriptors, any header. Whatever is planned lies inside the disk, and what is
//! read inside the files that the disk consists of.
#![no_main]

use bulkhead_vmm::devices::block::backing::{Layout, Place};
use bulkhead_vmm::devices::block::request::{Action, Disk, Request, SECTOR};
use bulkhead_vmm::virtio::device::QueueState;
use libfuzzer_sys::fuzz_target;
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const DESCRIPTORS: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;

fuzz_target!(|input: &[u8]| {
    let Some((flags, rest)) = input.split_first() else {
        return;
    };
    let mem = GuestMemoryMmap::<()>::from_ranges(&[
        (GuestAddress(0), 0x1_0000),
        (GuestAddress(0x2_0000), 0x1000),
    ])
    .unwrap();
    // 16 descriptors, then whatever they may point to.
    let (table, data) = rest.split_at(rest.len().min(256));
    mem.write_slice(table, GuestAddress(DESCRIPTORS)).unwrap();
    let data = &data[..data.len().min(0x8000)];
    mem.write_slice(data, GuestAddress(0x4000)).unwrap();
    mem.write_obj(1u16, GuestAddress(AVAIL + 2)).unwrap();
    let state = QueueState {
        index: 0,
        max_size: 16,
        size: 16,
        desc_table: DESCRIPTORS,
        avail_ring: AVAIL,
        used_ring: USED,
        event_idx: false,
        next_avail: 0,
        next_used: 0,
    };
    let mut queue = state.to_queue().unwrap();
    let disk = Disk {
        sectors: 1 << 20,
        read_only: flags & 1 != 0,
        discard: flags & 2 != 0,
        write_zeroes: flags & 4 != 0,
    };
    let Some(chain) = queue.pop_descriptor_chain(&mem) else {
        return;
    };
    let Ok(request) = Request::parse(chain, &mem, &disk) else {
        return;
    };
    if let Ok(Action::Read { offset }) = request.action {
        walk(u64::from(*flags), offset, request.data.len() as u64);
    }
    let end = match request.action {
        Ok(Action::Read { offset }) => offset.checked_add(request.data.len() as u64),
        Ok(Action::Write { offset }) => {
            assert!(!disk.read_only);
            offset.checked_add(request.data.len() as u64)
        }
        Ok(Action::Discard { offset, len } | Action::WriteZeroes { offset, len, .. }) => {
            assert!(!disk.read_only);
            offset.checked_add(len)
        }
        _ => Some(0),
    };
    assert!(end.unwrap() <= disk.sectors * SECTOR);
});

/// Reads from a disk of the same size that is files of all lengths.
fn walk(seed: u64, mut offset: u64, mut len: u64) {
    let disk = (1u64 << 20) * SECTOR;
    let mut layout = Layout::default();
    let mut held = Vec::new();
    while layout.len() < disk {
        let number = held.len() as u64 + seed;
        let bytes = (1 + number * number % 4099 * 4096).min(disk - layout.len());
        held.push(bytes - number % bytes.min(4096));
        layout.push(bytes, *held.last().unwrap()).unwrap();
    }
    while len > 0 {
        let step = match layout.locate(offset).unwrap() {
            Place::File { part, offset, len } => {
                assert!(offset + len <= held[part]);
                len
            }
            Place::Zeroes { len } => len,
        };
        assert!(step > 0);
        let step = step.min(len);
        offset += step;
        len -= step;
    }
}
