//! The balloon through its rings: memory really goes, and only what was named.

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::devices::testing::{DATA, Machine, RAM};
use crate::virtio::device::VirtioDevice;

const MIB: u64 = 1 << 20;

fn byte(machine: &Machine<BalloonDevice>, at: u64) -> u8 {
    machine.mem.read_obj(GuestAddress(at)).unwrap()
}

fn fill(machine: &Machine<BalloonDevice>) {
    let page = vec![0xaa; 4 << 20];
    machine
        .mem
        .write_slice(&page, GuestAddress(4 * MIB))
        .unwrap();
}

#[test]
fn reported_pages_go_back_to_the_host() {
    let machine = Machine::new(BalloonDevice::new());
    fill(&machine);
    let mut queues = machine.activate(true);
    let q = &mut queues[2];
    // Whole pages only: the first and last of an unaligned range stay.
    q.offer(&[
        (4 * MIB, u32::try_from(MIB).unwrap(), true),
        (6 * MIB + 100, 3 * 4096, true),
    ]);
    q.kick();
    q.wait();
    assert_eq!(byte(&machine, 4 * MIB), 0);
    assert_eq!(byte(&machine, 5 * MIB - 1), 0);
    assert_eq!(byte(&machine, 5 * MIB), 0xaa);
    assert_eq!(byte(&machine, 6 * MIB + 4095), 0xaa);
    assert_eq!(byte(&machine, 6 * MIB + 4096), 0);
    assert_eq!(byte(&machine, 6 * MIB + 3 * 4096), 0xaa);
    let metrics = machine.device().metrics();
    assert_eq!(metrics["reports"], 1);
    assert_eq!(metrics["reported_bytes"], MIB + 2 * 4096);
}

#[test]
fn inflating_drops_the_pages_named_and_deflating_nothing() {
    let machine = Machine::new(BalloonDevice::new());
    fill(&machine);
    let mut queues = machine.activate(true);
    let first = u32::try_from(4 * MIB / 4096).unwrap();
    let outside = u32::try_from(RAM / 4096).unwrap();
    let list: Vec<u8> = [first, first + 1, first + 9, outside, u32::MAX]
        .iter()
        .flat_map(|n| n.to_le_bytes())
        .collect();
    machine.mem.write_slice(&list, GuestAddress(DATA)).unwrap();
    let len = u32::try_from(list.len()).unwrap();
    queues[0].offer(&[(DATA, len, false)]);
    queues[0].kick();
    queues[0].wait();
    assert_eq!(byte(&machine, 4 * MIB + 8191), 0);
    assert_eq!(byte(&machine, 4 * MIB + 8192), 0xaa);
    assert_eq!(byte(&machine, 4 * MIB + 9 * 4096), 0);
    queues[1].offer(&[(DATA, len, false)]);
    queues[1].kick();
    queues[1].wait();
    assert_eq!(byte(&machine, 4 * MIB + 8192), 0xaa);
    let metrics = machine.device().metrics();
    assert_eq!(metrics["inflated_bytes"], 3 * 4096);
    assert_eq!(metrics["malformed"], 2);
}

#[test]
fn reports_outside_of_memory_are_refused() {
    let machine = Machine::new(BalloonDevice::new());
    let mut queues = machine.activate(false);
    for piece in [
        (RAM as u64 - 4096, 8192, true),
        (u64::MAX - 4095, 4096, true),
    ] {
        queues[2].offer(&[piece]);
        queues[2].kick();
        queues[2].wait();
    }
    assert_eq!(machine.device().metrics()["malformed"], 2);
}

#[test]
fn what_the_driver_says_of_its_size_is_kept_over_a_restore() {
    let mut device = BalloonDevice::new();
    device.write_config(4, &7u32.to_le_bytes());
    device.write_config(0, &9u32.to_le_bytes());
    device.write_config(u64::MAX, &[1]);
    let state = device.save().unwrap().state;
    let mut space = [0xffu8; 8];
    BalloonDevice::restore(&state)
        .unwrap()
        .read_config(0, &mut space);
    assert_eq!(space, [0, 0, 0, 0, 7, 0, 0, 0]);
}
