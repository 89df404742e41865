//! The memory device through its ring: blocks come and go, memory goes back, and a request that
//! makes no sense changes nothing.

use vm_memory::{Bytes, GuestAddress};

use super::region::{BLOCK, Region};
use super::*;
use crate::devices::testing::{DATA, DriverQueue, Machine, RAM};
use crate::memory::GuestMemory;
use crate::virtio::device::VirtioDevice;

const ADDR: u64 = 1 << 30;
const SIZE: u64 = 16 * BLOCK;

fn machine() -> (Machine<MemDevice>, MemHandle) {
    let handle = MemHandle::new(Region::new(ADDR, SIZE)).unwrap();
    let device = MemDevice::new(handle.clone());
    let regions = [
        (GuestAddress(0), RAM),
        (GuestAddress(ADDR), usize::try_from(SIZE).unwrap()),
    ];
    let mem = GuestMemory::from_ranges(&regions).unwrap();
    (Machine::with_memory(device, mem), handle)
}

/// Asks, and gives the answer's type and state.
fn ask(
    machine: &Machine<MemDevice>,
    q: &mut DriverQueue,
    kind: u16,
    first: u64,
    count: u16,
) -> (u8, u8) {
    let mut raw = [0u8; request::REQUEST];
    raw[..2].copy_from_slice(&kind.to_le_bytes());
    raw[8..16].copy_from_slice(&ADDR.wrapping_add(first.wrapping_mul(BLOCK)).to_le_bytes());
    raw[16..18].copy_from_slice(&count.to_le_bytes());
    machine.mem.write_slice(&raw, GuestAddress(DATA)).unwrap();
    q.offer(&[(DATA, 24, false), (DATA + 64, 10, true)]);
    q.kick();
    assert_eq!(q.wait().1, 10);
    let mut answer = [0u8; 10];
    machine
        .mem
        .read_slice(&mut answer, GuestAddress(DATA + 64))
        .unwrap();
    (answer[0], answer[8])
}

#[test]
fn memory_is_plugged_used_and_given_back() {
    let (machine, handle) = machine();
    let mut q = machine.activate(true).remove(0);
    handle.request(4 * BLOCK);
    let mut config = [0u8; 64];
    machine.device().read_config(0, &mut config[..56]);
    let field = |at: usize| u64::from_le_bytes(config[at..at + 8].try_into().unwrap());
    assert_eq!(
        [
            field(0),
            field(8),
            field(16),
            field(24),
            field(32),
            field(40),
            field(48)
        ],
        [BLOCK, 0, ADDR, SIZE, SIZE, 0, 4 * BLOCK]
    );

    assert_eq!(ask(&machine, &mut q, 0, 0, 4), (0, 0));
    assert_eq!(handle.changed().read().unwrap(), 1);
    assert_eq!(handle.region().plugged(), 4 * BLOCK);
    let page = GuestAddress(ADDR + 3 * BLOCK);
    machine.mem.write_obj(7u8, page).unwrap();
    assert_eq!(
        ask(&machine, &mut q, 0, 4, 1),
        (1, 0),
        "more than is wanted"
    );
    assert_eq!(ask(&machine, &mut q, 3, 2, 4), (0, 2), "mixed");
    assert_eq!(ask(&machine, &mut q, 1, 3, 1), (0, 0));
    assert_eq!(machine.mem.read_obj::<u8>(page).unwrap(), 0);
    assert_eq!(ask(&machine, &mut q, 3, 3, 1), (0, 1), "unplugged");
    assert_eq!(ask(&machine, &mut q, 2, 0, 0), (0, 0));
    assert_eq!(handle.region().plugged(), 0);
    let metrics = machine.device().metrics();
    assert_eq!(metrics["freed_bytes"], 4 * BLOCK);
    assert_eq!(metrics["refused"], 1);
}

#[test]
fn what_makes_no_sense_changes_nothing() {
    let (machine, handle) = machine();
    let mut q = machine.activate(true).remove(0);
    handle.request(4 * BLOCK);
    for (kind, first, count) in [
        (0, 0, 0),
        (0, 15, 2),
        (1, 0, 1),
        (9, 0, 1),
        (0, u64::MAX, 1),
    ] {
        assert_eq!(
            ask(&machine, &mut q, kind, first, count),
            (3, 0),
            "{kind} {first}"
        );
    }
    // Cut short, without room for the answer, outside of memory.
    for pieces in [
        &[(DATA, 23, false), (DATA + 64, 10, true)][..],
        &[(DATA, 24, false)],
        &[(u64::MAX - 64, 24, false), (DATA + 64, 10, true)],
    ] {
        q.offer(pieces);
        q.kick();
        q.wait();
    }
    assert_eq!(handle.region().plugged(), 0);
    assert!(machine.device().metrics()["malformed"].as_u64() >= Some(7));
}

#[test]
fn plugged_blocks_survive_a_reset_and_a_saved_form() {
    let (machine, handle) = machine();
    let mut q = machine.activate(true).remove(0);
    handle.request(4 * BLOCK);
    assert_eq!(ask(&machine, &mut q, 0, 1, 2), (0, 0));
    machine.device().reset();
    let mut q = machine.activate(false).remove(0);
    assert_eq!(ask(&machine, &mut q, 3, 1, 2), (0, 0));
    machine.device().quiesce().unwrap();
    let state = machine.device().save().unwrap().state;
    assert_eq!(*handle.region(), MemDevice::saved_region(&state).unwrap());
    let mut other = state.clone();
    other["plugged"][0]["end"] = 1.into();
    assert!(MemDevice::saved_region(&other).is_err());
    other["version"] = 2.into();
    assert!(MemDevice::saved_region(&other).is_err());
}
