//! A driver that says nonsense to the file server, in messages that are often plausible: whatever it
//! says, the tables keep their bounds, nothing outside the share changes, and it works after a reset.

#![allow(
    clippy::cast_possible_truncation,
    reason = "random numbers cut to size on purpose"
)]

use std::fs::File;

use vm_memory::{Bytes, GuestAddress};

use crate::devices::fs::{FsConfig, FsDevice, Limits, Server, Workers};
use crate::devices::random_driver::{Random, scribble};
use crate::devices::testing::{DATA, Machine};
use crate::virtio::device::VirtioDevice;

/// FUSE messages that are often plausible, in chains of every kind.
#[test]
fn the_file_server_survives() {
    let dir = tempfile::tempdir().unwrap();
    let share = dir.path().join("share");
    std::fs::create_dir(&share).unwrap();
    std::fs::write(dir.path().join("outside"), "untouched").unwrap();
    std::fs::write(share.join("a"), "text").unwrap();
    std::fs::create_dir(share.join("b")).unwrap();
    std::os::unix::fs::symlink("../outside", share.join("c")).unwrap();
    let limits = Limits {
        nodes: 6,
        handles: 8,
    };
    let opened = File::open(&share).unwrap().into();
    let descriptors = crate::jail::descriptors().unwrap();
    let server = Server::new(opened, descriptors, limits).unwrap();
    let device = FsDevice::new(FsConfig {
        tag: "t".into(),
        workers: Workers::start(server, || Ok(())).unwrap(),
    })
    .unwrap();
    let machine = Machine::new(device);
    let mut random = Random(0x3141_5926_5358_9793);
    for round in 0..4 {
        let mut queues = machine.activate(round % 2 == 0);
        // Gives what an answer begins with: a node's number, or a handle's.
        let mut ask = |bytes: &[u8], queue: usize, room: u32| -> u64 {
            machine.mem.write_slice(bytes, GuestAddress(DATA)).unwrap();
            let (len, answer) = (bytes.len() as u32, DATA + 0x10_0000);
            queues[queue].offer(&[(DATA, len, false), (answer, room, true)]);
            queues[queue].kick();
            match queues[queue].wait().1 {
                24.. => machine.mem.read_obj(GuestAddress(answer + 16)).unwrap(),
                _ => 1,
            }
        };
        let mount = fuse(26, 0, &[7, 41, 0, 0, 0]);
        let mut seen = [1u64; 8];
        for count in 0..6000 {
            if count % 300 == 0 {
                ask(&mount, 1, 4096);
            }
            let message = fuse_nonsense(&mut random, &seen);
            let room = [0, 15, 16, 100, 4096, 0x10_0000][random.below(6) as usize];
            let queue = usize::from(random.below(10) > 0);
            let answer = ask(&message, queue, room);
            if answer > 1 && answer < 1 << 32 {
                seen[random.below(8) as usize] = answer;
            }
            if random.below(200) == 0 {
                machine.device().quiesce().unwrap();
                // Refused while files are held, which is not what this is about.
                let _ = machine.device().save();
                machine.device().resume().unwrap();
            }
        }
        let metrics = machine.device().metrics();
        println!("{metrics}");
        assert!(metrics["nodes"].as_u64() < Some(6));
        assert!(metrics["handles"].as_u64() <= Some(8));
        machine.device().reset();
        // The rings themselves, too.
        let queues = machine.activate(round % 2 == 0);
        for _ in 0..100 {
            scribble(&machine, queues.len(), &mut random);
            for queue in &queues {
                queue.kick();
            }
        }
        machine.device().reset();
    }
    let outside: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(outside.len(), 2);
    let text = std::fs::read(dir.path().join("outside")).unwrap();
    assert_eq!(text, b"untouched");
    let metrics = machine.device().metrics();
    for counter in ["errors", "malformed", "limited", "reads", "bytes_written"] {
        assert!(metrics[counter].as_u64() > Some(1), "{counter}: {metrics}");
    }
    // It still works.
    let mut queues = machine.activate(true);
    machine
        .mem
        .write_slice(&fuse(26, 0, &[7, 41, 0, 0, 0]), GuestAddress(DATA))
        .unwrap();
    queues[1].offer(&[(DATA, 60, false), (DATA + 0x1000, 4096, true)]);
    queues[1].kick();
    assert_eq!(queues[1].wait().1, 80);
}

/// A FUSE message of the guest's root, its body in words.
fn fuse(opcode: u32, node: u64, body: &[u32]) -> Vec<u8> {
    let len = 40 + 4 * body.len() as u32;
    let mut out = Vec::new();
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&opcode.to_le_bytes());
    out.extend_from_slice(&1u64.to_le_bytes());
    out.extend_from_slice(&node.to_le_bytes());
    out.extend_from_slice(&[0; 16]);
    out.extend(body.iter().flat_map(|w| w.to_le_bytes()));
    out
}

fn fuse_nonsense(random: &mut Random, seen: &[u64; 8]) -> Vec<u8> {
    const NAMES: [&str; 10] = [
        "a",
        "b",
        "c",
        "d",
        "e",
        "..",
        ".",
        "b/x",
        "../outside",
        "user.x",
    ];
    let opcode = match random.below(20) {
        0 => random.next() as u32,
        // Looking up, opening, reading and writing is what the rest builds on.
        1..10 => [1, 1, 14, 27, 35, 15, 16, 28, 18][random.below(9) as usize],
        _ => match random.below(53) as u32 {
            26 | 38 => 1,
            other => other,
        },
    };
    let pick = |random: &mut Random| seen[random.below(8) as usize];
    let node = match random.below(3) {
        0 => 1,
        1 => random.below(60),
        _ => pick(random),
    };
    // Numbers first, of the size most structures have, then names.
    let numbers = [0, 1, 2, 4, 4, 6, 10, 10, 14, 22][random.below(10) as usize];
    let mut body: Vec<u32> = (0..numbers)
        .map(|i| match random.below(8) {
            0 => random.next() as u32,
            1 => u32::MAX,
            2 => 0,
            _ if i % 2 == 1 => 0,
            _ => random.below(60) as u32,
        })
        .collect();
    if numbers >= 2 && random.below(3) > 0 {
        // Mostly flags, or a handle.
        let first = match opcode {
            14 | 35 => random.below(3),
            _ => pick(random),
        };
        (body[0], body[1]) = (first as u32, 0);
    }
    let data = matches!(opcode, 15 | 16) && numbers >= 10;
    if data {
        (body[2], body[3], body[4]) = (random.below(4) as u32, 0, random.below(64) as u32);
    }
    let mut out = fuse(opcode, node, &body);
    if data {
        out.resize(out.len() + 64, b'x');
    }
    for _ in 0..random.below(3) {
        let name = NAMES[random.below(NAMES.len() as u64) as usize];
        out.extend_from_slice(name.as_bytes());
        if random.below(20) > 0 {
            out.push(0);
        }
    }
    let len = match random.below(30) {
        0 => random.next() as u32,
        _ => out.len() as u32,
    };
    out[..4].copy_from_slice(&len.to_le_bytes());
    out
}
