//! A driver that writes nonsense into its rings while the devices work on them. Whatever it does,
//! no device panics, hangs or stops working after a reset. Tests only.

#![allow(
    clippy::cast_possible_truncation,
    reason = "random numbers cut to size on purpose"
)]

use std::fs::File;
use std::os::unix::net::UnixListener;

use vm_memory::{Bytes, GuestAddress};

use super::balloon::BalloonDevice;
use super::block::{BlockConfig, BlockDevice, EngineKind};
use super::mem::region::{BLOCK, Region};
use super::mem::{MemDevice, MemHandle};
use super::rng::RngDevice;
use super::testing::{DATA, DriverQueue, Machine, RAM};
use super::vsock::{VsockConfig, VsockDevice};
use crate::virtio::device::VirtioDevice;

/// xorshift64
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// A descriptor that is often plausible.
fn descriptor(random: &mut Random) -> [u8; 16] {
    let addr = match random.below(8) {
        0 => random.next(),
        1 => RAM as u64 - random.below(8192),
        2 => random.below(0x2_0000),
        _ => DATA + random.below(0x80) * 512,
    };
    let len = match random.below(6) {
        0 => random.next() as u32,
        1 => 16,
        2 => random.below(64) as u32,
        3 => 44,
        _ => random.below(32) as u32 * 512,
    };
    let flags = match random.below(5) {
        0 => random.next() as u16,
        _ => random.below(8) as u16,
    };
    let mut out = [0; 16];
    out[..8].copy_from_slice(&addr.to_le_bytes());
    out[8..12].copy_from_slice(&len.to_le_bytes());
    out[12..14].copy_from_slice(&flags.to_le_bytes());
    out[14..].copy_from_slice(&(random.below(300) as u16).to_le_bytes());
    out
}

fn raw(addr: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut out = [0; 16];
    out[..8].copy_from_slice(&addr.to_le_bytes());
    out[8..12].copy_from_slice(&len.to_le_bytes());
    out[12..14].copy_from_slice(&flags.to_le_bytes());
    out[14..].copy_from_slice(&next.to_le_bytes());
    out
}

/// A chain as a sane driver would make it: a disk's request, a packet, or an empty buffer.
fn chain(first: u16, random: &mut Random) -> Vec<[u8; 16]> {
    let mut place = || DATA + random.below(0x80) * 512;
    let (head, data, status) = (place(), place(), place());
    let len = random.below(8) as u32 * 512;
    match random.below(4) {
        0 => vec![
            raw(head, 16, 1, first + 1),
            raw(data, len, 3, first + 2),
            raw(status, 1, 2, 0),
        ],
        1 => vec![
            raw(head, 16, 1, first + 1),
            raw(data, len, 1, first + 2),
            raw(status, 1, 2, 0),
        ],
        2 => vec![raw(head, 44, 1, first + 1), raw(data, 2048, 0, 0)],
        _ => vec![raw(data, 4096, 2, 0)],
    }
}

/// One round of nonsense in the rings of `queues` queues and in the data.
pub(super) fn scribble<D: VirtioDevice + 'static>(
    machine: &Machine<D>,
    queues: usize,
    random: &mut Random,
) {
    let mem = &machine.mem;
    for queue in 0..queues as u64 {
        let base = 0x4000 * (queue + 1);
        for _ in 0..8 {
            let first = 4 * random.below(16);
            for (i, raw) in chain(first as u16, random).iter().enumerate() {
                let at = base + 16 * (first + i as u64);
                let raw = match random.below(12) {
                    0 => descriptor(random),
                    _ => *raw,
                };
                mem.write_slice(&raw, GuestAddress(at)).unwrap();
            }
        }
        for _ in 0..8 {
            let at = base + 0x1004 + 2 * random.below(256);
            let entry = match random.below(12) {
                0 => random.below(300) as u16,
                _ => 4 * random.below(16) as u16,
            };
            mem.write_obj(entry, GuestAddress(at)).unwrap();
        }
        let index: u16 = mem.read_obj(GuestAddress(base + 0x1002)).unwrap();
        // A jump beyond the ring's size ends its use until the reset: rarely.
        let step = match random.below(300) {
            0 => random.next() as u16,
            _ => random.below(5) as u16,
        };
        let index = index.wrapping_add(step);
        mem.write_obj(index, GuestAddress(base + 0x1002)).unwrap();
        // used_event, avail_event
        mem.write_obj(random.next() as u16, GuestAddress(base + 0x1204))
            .unwrap();
    }
    for _ in 0..16 {
        let at = DATA + random.below(0x80) * 512;
        let small = |random: &mut Random, n| (random.below(n) as u32).to_le_bytes();
        let mut head = [0u8; 64];
        if random.below(2) == 0 {
            // A disk's request, or a range.
            head[..4].copy_from_slice(&small(random, 16));
            head[8..12].copy_from_slice(&small(random, 3000));
        } else {
            // A vsock packet.
            head[..8].copy_from_slice(&3u64.to_le_bytes());
            head[8] = 2;
            head[16..20].copy_from_slice(&small(random, 2));
            head[20..24].copy_from_slice(&small(random, 3));
            head[24..28].copy_from_slice(&small(random, 2000));
            head[28] = 1;
            head[30] = [1, 1, 1, 5, 5, random.below(9) as u8][random.below(6) as usize];
            head[32] = random.below(4) as u8;
            head[36..40].copy_from_slice(&small(random, 100_000));
        }
        for _ in 0..random.below(3) {
            head[random.below(64) as usize] = random.next() as u8;
        }
        mem.write_slice(&head, GuestAddress(at)).unwrap();
    }
}

/// Nonsense for a while, then a reset, then `works` on fresh rings.
fn survive<D: VirtioDevice + 'static>(
    seed: u64,
    device: D,
    works: impl FnOnce(&Machine<D>, Vec<DriverQueue>),
) {
    let machine = Machine::new(device);
    let mut random = Random(seed);
    for round in 0..6 {
        let queues = machine.activate(round % 2 == 0);
        for _ in 0..200 {
            scribble(&machine, queues.len(), &mut random);
            for queue in &queues {
                queue.kick();
            }
            if random.below(4) == 0 {
                std::thread::yield_now();
            }
            if random.below(20) == 0 {
                machine.device().quiesce().unwrap();
                machine.device().save().unwrap();
                machine.device().resume().unwrap();
            }
        }
        machine.device().reset();
    }
    let queues = machine.activate(true);
    works(&machine, queues);
}

#[test]
fn a_disk_survives() {
    for (seed, engine) in [
        (0x1234_5678_9abc_def1, EngineKind::Auto),
        (0x0f1e_2d3c_4b5a_6978, EngineKind::Worker),
    ] {
        let file: File = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let device = BlockDevice::new(BlockConfig {
            id: "scratch".into(),
            parts: vec![file.try_clone().unwrap().into()],
            read_only: false,
            queues: 2,
            engine,
        })
        .unwrap();
        survive(seed, device, |machine, mut queues| {
            machine
                .mem
                .write_slice(&[0; 16], GuestAddress(DATA))
                .unwrap();
            queues[0].offer(&[
                (DATA, 16, false),
                (DATA + 512, 512, true),
                (DATA + 16, 1, true),
            ]);
            queues[0].kick();
            assert_eq!(queues[0].wait().1, 513);
            let status: u8 = machine.mem.read_obj(GuestAddress(DATA + 16)).unwrap();
            assert_eq!(status, 0);
            // The nonsense got somewhere.
            let metrics = machine.device().metrics();
            println!("{metrics}");
            for counter in ["refused", "malformed"] {
                assert!(metrics[counter].as_u64() > Some(1), "{metrics}");
            }
        });
        // Nothing was written beyond the end.
        assert_eq!(file.metadata().unwrap().len(), 1 << 20);
    }
}

#[test]
fn the_vsock_device_survives() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.sock");
    // A host that accepts, and never reads.
    let _listener = UnixListener::bind(dir.path().join("v.sock_1")).unwrap();
    let device = VsockDevice::new(VsockConfig { cid: 3, path }).unwrap();
    survive(0xfeed_beef_0bad_cafe, device, |machine, mut queues| {
        let request = super::vsock::packet::Header {
            src_cid: 3,
            dst_cid: 2,
            src_port: 5,
            dst_port: 6,
            kind: 1,
            op: 1,
            ..Default::default()
        };
        machine
            .mem
            .write_slice(&request.to_bytes(), GuestAddress(DATA))
            .unwrap();
        queues[0].offer(&[(DATA + 0x1000, 4096, true)]);
        queues[0].kick();
        queues[1].offer(&[(DATA, 44, false)]);
        queues[1].kick();
        queues[1].wait();
        // Nobody listens: refused.
        assert_eq!(queues[0].wait().1, 44);
        let metrics = machine.device().metrics();
        println!("{metrics}");
        for counter in ["packets_from_guest", "malformed"] {
            assert!(metrics[counter].as_u64() > Some(1), "{metrics}");
        }
    });
}

#[test]
fn the_entropy_device_survives() {
    survive(0x5555_1111_9999_3333, RngDevice::new(), |_, mut queues| {
        queues[0].offer(&[(DATA, 64, true)]);
        queues[0].kick();
        assert_eq!(queues[0].wait().1, 64);
    });
}

#[test]
fn the_balloon_survives() {
    survive(
        0x7777_2222_8888_4444,
        BalloonDevice::new(),
        |machine, mut queues| {
            machine.mem.write_obj(1u8, GuestAddress(DATA)).unwrap();
            queues[2].offer(&[(DATA, 4096, true)]);
            queues[2].kick();
            queues[2].wait();
            assert_eq!(machine.mem.read_obj::<u8>(GuestAddress(DATA)).unwrap(), 0);
        },
    );
}

#[test]
fn the_memory_device_survives() {
    // In the middle of the memory the nonsense is in: what is unplugged goes.
    let handle = MemHandle::new(Region::new(4 * BLOCK, 4 * BLOCK)).unwrap();
    handle.request(3 * BLOCK);
    let device = MemDevice::new(handle.clone());
    survive(0x3333_aaaa_5555_bbbb, device, |machine, mut queues| {
        assert!(handle.region().plugged() <= 3 * BLOCK);
        // UNPLUG_ALL, then PLUG of two blocks.
        for (kind, count) in [(2u16, 0u16), (0, 2)] {
            let mut raw = [0u8; 24];
            raw[..2].copy_from_slice(&kind.to_le_bytes());
            raw[8..16].copy_from_slice(&(4 * BLOCK).to_le_bytes());
            raw[16..18].copy_from_slice(&count.to_le_bytes());
            machine.mem.write_slice(&raw, GuestAddress(DATA)).unwrap();
            queues[0].offer(&[(DATA, 24, false), (DATA + 64, 10, true)]);
            queues[0].kick();
            assert_eq!(queues[0].wait().1, 10);
            let answer: u8 = machine.mem.read_obj(GuestAddress(DATA + 64)).unwrap();
            assert_eq!(answer, 0, "{kind}");
        }
        assert_eq!(handle.region().plugged(), 2 * BLOCK);
        let metrics = machine.device().metrics();
        assert!(metrics["malformed"].as_u64() > Some(1), "{metrics}");
    });
}
