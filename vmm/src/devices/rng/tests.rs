//! The entropy device through its ring.

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::devices::testing::{DATA, Machine};
use crate::virtio::device::VirtioDevice;

#[test]
fn buffers_are_filled_with_something_up_to_the_bound() {
    let machine = Machine::new(RngDevice::new());
    let mut q = machine.activate(true).remove(0);
    let mut last = [0u8; 64];
    for _ in 0..20 {
        q.offer(&[(DATA, 32, true), (DATA + 0x1000, 32, true)]);
        q.kick();
        assert_eq!(q.wait().1, 64);
        let mut got = [0u8; 64];
        let mem = &machine.mem;
        mem.read_slice(&mut got[..32], GuestAddress(DATA)).unwrap();
        mem.read_slice(&mut got[32..], GuestAddress(DATA + 0x1000))
            .unwrap();
        assert_ne!(got, last);
        last = got;
    }
    q.offer(&[(DATA, 0x10_0000, true)]);
    q.kick();
    assert_eq!(q.wait().1 as usize, request::MAX_BYTES);
    // Nowhere to write, and outside of memory: given back empty.
    q.offer(&[(DATA, 64, false)]);
    q.offer(&[(u64::MAX - 8, 64, true)]);
    q.kick();
    assert_eq!(q.wait().1, 0);
    assert_eq!(q.wait().1, 0);
    assert_eq!(machine.device().metrics()["malformed"], 1);
}

#[test]
fn a_burst_larger_than_a_turn_is_served_whole() {
    let machine = Machine::new(RngDevice::new());
    let mut q = machine.activate(true).remove(0);
    for _ in 0..64 {
        q.offer(&[(DATA, 16, true)]);
    }
    q.kick();
    for _ in 0..64 {
        assert_eq!(q.wait().1, 16);
    }
}

#[test]
fn it_restores_from_its_own_version_only() {
    let mut state = RngDevice::new().save().unwrap().state;
    RngDevice::restore(&state).unwrap();
    state["version"] = 2.into();
    assert!(RngDevice::restore(&state).is_err());
}
