//! The disk as a driver meets it: both engines, real files, real rings.

#![allow(
    clippy::cast_possible_truncation,
    reason = "patterns and lengths a test has chosen itself"
)]

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::devices::testing::{DATA, DriverQueue, Machine};
use crate::virtio::device::VirtioDevice;

const MIB: u64 = 1 << 20;
const STATUS: u64 = DATA - 0x100;

fn disk(len: u64, read_only: bool, engine: EngineKind, queues: u16) -> (File, BlockConfig) {
    let mut file = tempfile::tempfile().unwrap();
    let pattern: Vec<u8> = (0..len).map(|i| (i / 512 + i) as u8).collect();
    file.write_all(&pattern).unwrap();
    let config = BlockConfig {
        id: "scratch".into(),
        parts: vec![file.try_clone().unwrap().into()],
        read_only,
        queues,
        engine,
    };
    (file, config)
}

/// One request, waited for: its status.
fn ask(
    machine: &Machine<BlockDevice>,
    queue: &mut DriverQueue,
    kind: u32,
    sector: u64,
    data: &[(u64, u32, bool)],
) -> (u8, u32) {
    let mem = &machine.mem;
    let header = DATA - 0x200;
    mem.write_obj(kind, GuestAddress(header)).unwrap();
    mem.write_obj(sector, GuestAddress(header + 8)).unwrap();
    mem.write_obj(0xffu8, GuestAddress(STATUS)).unwrap();
    let mut chain = vec![(header, 16, false)];
    chain.extend_from_slice(data);
    chain.push((STATUS, 1, true));
    let head = queue.offer(&chain);
    queue.kick();
    let (done, len) = queue.wait();
    assert_eq!(done, head);
    (mem.read_obj(GuestAddress(STATUS)).unwrap(), len)
}

fn both(test: impl Fn(EngineKind)) {
    for engine in [EngineKind::Auto, EngineKind::Worker] {
        test(engine);
    }
}

#[test]
fn what_is_written_is_in_the_file_and_is_read_again() {
    both(|engine| {
        let (file, config) = disk(MIB, false, engine, 1);
        let machine = Machine::new(BlockDevice::new(config).unwrap());
        let mut q = machine.activate(true).remove(0);
        machine
            .mem
            .write_slice(&[0x5a; 8192], GuestAddress(DATA))
            .unwrap();
        let pieces = [(DATA, 4096, false), (DATA + 0x2000, 4096, false)];
        machine
            .mem
            .write_slice(&[0xa5; 4096], GuestAddress(DATA + 0x2000))
            .unwrap();
        assert_eq!(ask(&machine, &mut q, VIRTIO_BLK_T_OUT, 8, &pieces), (0, 1));
        assert_eq!(ask(&machine, &mut q, VIRTIO_BLK_T_FLUSH, 0, &[]), (0, 1));
        let mut got = [0u8; 8192];
        file.read_exact_at(&mut got, 4096).unwrap();
        assert!(got[..4096].iter().all(|b| *b == 0x5a));
        assert!(got[4096..].iter().all(|b| *b == 0xa5));
        let back = [(DATA + 0x8000, 512, true), (DATA + 0x9000, 7680, true)];
        assert_eq!(ask(&machine, &mut q, VIRTIO_BLK_T_IN, 8, &back), (0, 8193));
        let mut seen = vec![0u8; 7680];
        machine
            .mem
            .read_slice(&mut seen, GuestAddress(DATA + 0x9000))
            .unwrap();
        assert_eq!(seen, got[512..]);
        let metrics = machine.device().metrics();
        assert_eq!(metrics["reads"], 1);
        assert_eq!(metrics["written_bytes"], 8192);
        assert_eq!(metrics["flushes"], 1);
    });
}

#[test]
fn the_serial_is_the_id() {
    let (_file, config) = disk(4096, true, EngineKind::Auto, 1);
    let machine = Machine::new(BlockDevice::new(config).unwrap());
    let mut q = machine.activate(false).remove(0);
    assert_eq!(
        ask(
            &machine,
            &mut q,
            VIRTIO_BLK_T_GET_ID,
            0,
            &[(DATA, 20, true)]
        ),
        (0, 21)
    );
    let mut id = [0u8; 20];
    machine.mem.read_slice(&mut id, GuestAddress(DATA)).unwrap();
    assert_eq!(&id, b"scratch\0\0\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn a_read_only_disk_and_what_is_beyond_the_end_are_refused() {
    let (mut file, config) = disk(MIB, true, EngineKind::Auto, 1);
    let machine = Machine::new(BlockDevice::new(config).unwrap());
    let mut q = machine.activate(true).remove(0);
    let out = [(DATA, 512, false)];
    assert_eq!(ask(&machine, &mut q, VIRTIO_BLK_T_OUT, 0, &out).0, 1);
    assert_eq!(ask(&machine, &mut q, VIRTIO_BLK_T_FLUSH, 0, &[]).0, 0);
    let inn = [(DATA, 1024, true)];
    assert_eq!(ask(&machine, &mut q, VIRTIO_BLK_T_IN, 2047, &inn).0, 1);
    assert_eq!(ask(&machine, &mut q, VIRTIO_BLK_T_IN, 2046, &inn).0, 0);
    assert_eq!(ask(&machine, &mut q, 99, 0, &[]).0, 2);
    // A file that shrinks under us is an error, not a hang and not old data.
    file.set_len(4096).unwrap();
    assert_eq!(ask(&machine, &mut q, VIRTIO_BLK_T_IN, 2046, &inn).0, 1);
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut first = [0u8; 1];
    file.read_exact(&mut first).unwrap();
    assert_eq!(first, [0]);
}

#[test]
fn discarded_space_goes_back_and_zeroes_are_zeroes() {
    both(|engine| {
        let (file, config) = disk(4 * MIB, false, engine, 1);
        file.sync_all().unwrap();
        let machine = Machine::new(BlockDevice::new(config).unwrap());
        let offered = machine.device().device_features();
        assert_ne!(
            offered & 1 << VIRTIO_BLK_F_DISCARD,
            0,
            "temporary files have holes"
        );
        let mut q = machine.activate(true).remove(0);
        let before = file.metadata().unwrap().blocks();
        let range = |sector: u64, sectors: u32, flags: u32| {
            machine.mem.write_obj(sector, GuestAddress(DATA)).unwrap();
            machine
                .mem
                .write_obj(sectors, GuestAddress(DATA + 8))
                .unwrap();
            machine
                .mem
                .write_obj(flags, GuestAddress(DATA + 12))
                .unwrap();
            [(DATA, 16, false)]
        };
        let r = range(0, 4096, 0);
        assert_eq!(ask(&machine, &mut q, VIRTIO_BLK_T_DISCARD, 0, &r).0, 0);
        assert!(file.metadata().unwrap().blocks() <= before - 4000);
        for (sector, flags) in [(5000, 0), (6000, 1)] {
            let r = range(sector, 10, flags);
            assert_eq!(ask(&machine, &mut q, VIRTIO_BLK_T_WRITE_ZEROES, 0, &r).0, 0);
            let mut got = [1u8; 5120];
            file.read_exact_at(&mut got, sector * 512).unwrap();
            assert_eq!(got, [0; 5120]);
        }
        assert_eq!(file.metadata().unwrap().len(), 4 * MIB);
    });
}

#[test]
fn many_requests_on_two_queues_all_come_back_right() {
    both(|engine| {
        let (file, config) = disk(4 * MIB, false, engine, 2);
        let machine = Machine::new(BlockDevice::new(config).unwrap());
        let mut queues = machine.activate(true);
        let mut done = 0;
        let mut sector = 0u64;
        // Each slot: header, 512 bytes, status, 2 KiB apart.
        while done < 2000 {
            for (n, q) in queues.iter_mut().enumerate() {
                let mut heads = Vec::new();
                while q.room() >= 3 && heads.len() < 80 {
                    sector = (sector * 31 + 7) % 8192;
                    let base = DATA + (n as u64 * 100 + heads.len() as u64) * 2048;
                    let mem = &machine.mem;
                    mem.write_obj(VIRTIO_BLK_T_IN, GuestAddress(base)).unwrap();
                    mem.write_obj(sector, GuestAddress(base + 8)).unwrap();
                    let head = q.offer(&[
                        (base, 16, false),
                        (base + 512, 512, true),
                        (base + 1024, 1, true),
                    ]);
                    heads.push((head, base, sector));
                }
                q.kick();
                for _ in 0..heads.len() {
                    let (head, len) = q.wait();
                    assert_eq!(len, 513);
                    let at = heads.iter().position(|h| h.0 == head).unwrap();
                    let (_, base, sector) = heads.swap_remove(at);
                    let (mut want, mut got) = ([0u8; 512], [0u8; 512]);
                    file.read_exact_at(&mut want, sector * 512).unwrap();
                    machine
                        .mem
                        .read_slice(&mut got, GuestAddress(base + 512))
                        .unwrap();
                    assert_eq!(got, want);
                    done += 1;
                }
            }
        }
    });
}

#[test]
fn a_paused_disk_stands_still_and_goes_on_elsewhere() {
    both(|engine| {
        let (file, config) = disk(MIB, false, engine, 1);
        let machine = Machine::new(BlockDevice::new(config).unwrap());
        let features = machine.device().device_features();
        let mut q = machine.activate(true).remove(0);
        assert_eq!(
            ask(&machine, &mut q, VIRTIO_BLK_T_IN, 0, &[(DATA, 512, true)]).0,
            0
        );
        machine.device().quiesce().unwrap();
        let mem = &machine.mem;
        mem.write_obj(0xffu8, GuestAddress(STATUS)).unwrap();
        q.offer(&[
            (DATA - 0x200, 16, false),
            (DATA, 512, true),
            (STATUS, 1, true),
        ]);
        q.kick();
        assert_eq!(
            q.wait_until(Instant::now() + Duration::from_millis(50)),
            None
        );
        let saved = machine.device().save().unwrap();
        assert_eq!(saved.queues[0].next_avail, 1);
        // Another process would get these; here another device on the same memory.
        machine.device().reset();
        let config = BlockConfig {
            id: "scratch".into(),
            parts: vec![file.try_clone().unwrap().into()],
            read_only: false,
            queues: 1,
            engine,
        };
        let restored = BlockDevice::restore(config, &saved.state).unwrap();
        let second = Machine::with_memory(restored, machine.mem.clone());
        let mut q = second.activate_at(&saved.queues, features).remove(0);
        assert_eq!(q.wait().1, 513);
        assert_eq!(mem.read_obj::<u8>(GuestAddress(STATUS)).unwrap(), 0);
    });
}

#[test]
fn resuming_takes_up_what_was_offered_meanwhile() {
    let (_file, config) = disk(MIB, false, EngineKind::Auto, 1);
    let machine = Machine::new(BlockDevice::new(config).unwrap());
    let mut q = machine.activate(true).remove(0);
    machine.device().quiesce().unwrap();
    machine
        .mem
        .write_obj(0u64, GuestAddress(DATA - 0x200))
        .unwrap();
    machine
        .mem
        .write_obj(0u64, GuestAddress(DATA - 0x200 + 8))
        .unwrap();
    q.offer(&[
        (DATA - 0x200, 16, false),
        (DATA, 512, true),
        (STATUS, 1, true),
    ]);
    q.kick();
    assert_eq!(
        q.wait_until(Instant::now() + Duration::from_millis(50)),
        None
    );
    machine.device().resume().unwrap();
    assert_eq!(q.wait().1, 513);
}

#[test]
fn a_saved_form_of_another_disk_is_refused() {
    let (_file, config) = disk(MIB, false, EngineKind::Auto, 1);
    let saved = BlockDevice::new(config).unwrap().save().unwrap();
    let (_file, smaller) = disk(MIB / 2, false, EngineKind::Auto, 1);
    assert!(matches!(
        BlockDevice::restore(smaller, &saved.state),
        Err(BlockError::Saved { .. })
    ));
    let (_file, read_only) = disk(MIB, true, EngineKind::Auto, 1);
    assert!(matches!(
        BlockDevice::restore(read_only, &saved.state),
        Err(BlockError::Saved { .. })
    ));
    let mut newer = saved.state.clone();
    newer["version"] = 99.into();
    let (_file, same) = disk(MIB, false, EngineKind::Auto, 1);
    assert!(matches!(
        BlockDevice::restore(same, &newer),
        Err(BlockError::Saved { .. })
    ));
}

#[test]
fn a_driver_without_flush_gets_its_writes_through() {
    let (_file, config) = disk(MIB, false, EngineKind::Auto, 1);
    let machine = Machine::new(BlockDevice::new(config).unwrap());
    let features = machine.device().device_features() & !(1 << VIRTIO_BLK_F_FLUSH);
    let mut q = machine.activate_with(features, false).remove(0);
    let out = [(DATA, 512, false)];
    assert_eq!(ask(&machine, &mut q, VIRTIO_BLK_T_OUT, 0, &out).0, 0);
}

/// A file of `len` bytes that say where they are in it, and in which.
fn part(number: u8, len: usize) -> (File, Vec<u8>) {
    let bytes: Vec<u8> = (0..len)
        .map(|at| number.wrapping_mul(31) ^ (at / 512 + at) as u8)
        .collect();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    (file, bytes)
}

/// A disk of files of these lengths, and what is on it.
fn joined(lengths: &[usize], engine: EngineKind) -> (Vec<File>, Vec<u8>, BlockConfig) {
    let (mut files, mut content, mut parts) = (Vec::new(), Vec::new(), Vec::new());
    for (number, len) in lengths.iter().enumerate() {
        let (file, bytes) = part(number as u8 + 1, *len);
        content.extend_from_slice(&bytes);
        content.resize(content.len().next_multiple_of(4096), 0);
        parts.push(Part {
            file: file.try_clone().unwrap(),
            bytes: Some(len.next_multiple_of(4096) as u64),
        });
        files.push(file);
    }
    let config = BlockConfig {
        id: "joined".into(),
        parts,
        read_only: true,
        queues: 1,
        engine,
    };
    (files, content, config)
}

#[test]
fn files_one_after_the_other_are_one_disk() {
    both(|engine| {
        // Whole blocks, odd ends, and one smaller than a sector.
        let lengths = [4096, 4097, 1, 12288, 8191, 511, 5000];
        let (_files, content, config) = joined(&lengths, engine);
        let machine = Machine::new(BlockDevice::new(config).unwrap());
        assert_eq!(
            machine.device().config_as_bytes()[..8],
            (content.len() as u64 / 512).to_le_bytes()
        );
        let mut q = machine.activate(true).remove(0);
        let sectors = content.len() / 512;
        for first in 0..sectors {
            for count in [1, 2, 7, 8, 9, 30, sectors] {
                let count = count.min(sectors - first);
                let len = count * 512;
                // In two pieces that end anywhere.
                let cut = (first * 97 + 13) % len;
                let pieces = [
                    (DATA, cut as u32, true),
                    (DATA + cut as u64, (len - cut) as u32, true),
                ];
                let pieces = if cut == 0 { &pieces[1..] } else { &pieces[..] };
                machine
                    .mem
                    .write_slice(&vec![0xee; len], GuestAddress(DATA))
                    .unwrap();
                let answer = ask(&machine, &mut q, VIRTIO_BLK_T_IN, first as u64, pieces);
                assert_eq!(answer, (0, len as u32 + 1));
                let mut got = vec![0; len];
                machine
                    .mem
                    .read_slice(&mut got, GuestAddress(DATA))
                    .unwrap();
                assert!(
                    got == content[first * 512..][..len],
                    "{count} from {first} on"
                );
            }
        }
        let beyond = [(DATA, 1024, true)];
        let last = sectors as u64 - 1;
        assert_eq!(ask(&machine, &mut q, VIRTIO_BLK_T_IN, last, &beyond).0, 1);
        let out = [(DATA, 512, false)];
        assert_eq!(ask(&machine, &mut q, VIRTIO_BLK_T_OUT, 0, &out).0, 1);
    });
}

#[test]
fn a_part_that_shrinks_fails_its_own_reads_and_one_that_grows_shows_nothing_more() {
    both(|engine| {
        let (files, content, config) = joined(&[8192, 5000, 8192], engine);
        let machine = Machine::new(BlockDevice::new(config).unwrap());
        let mut q = machine.activate(true).remove(0);
        files[0].set_len(4096).unwrap();
        files[1].write_all_at(&[0x77; 8192], 5000).unwrap();
        let mut read = |sector: u64, len: u32| {
            let asked = ask(
                &machine,
                &mut q,
                VIRTIO_BLK_T_IN,
                sector,
                &[(DATA, len, true)],
            );
            let mut got = vec![0; len as usize];
            machine
                .mem
                .read_slice(&mut got, GuestAddress(DATA))
                .unwrap();
            (asked.0, got)
        };
        assert_eq!(read(8, 512).0, 1);
        assert_eq!(read(0, 16384).0, 1);
        let (status, got) = read(16, 16384);
        assert_eq!(status, 0);
        assert!(got == content[8192..]);
    });
}

#[test]
fn impossible_parts_are_refused() {
    let refused = |lengths: &[(u64, u64)], read_only| {
        let parts = lengths.iter().map(|(len, bytes)| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(*len).unwrap();
            Part {
                file,
                bytes: Some(*bytes),
            }
        });
        BlockDevice::new(BlockConfig {
            id: "a".into(),
            parts: parts.collect(),
            read_only,
            queues: 1,
            engine: EngineKind::Auto,
        })
        .is_err()
    };
    assert!(!refused(&[(4096, 4096), (1, 4096)], true));
    assert!(refused(&[(4096, 4096), (1, 4096)], false));
    for lengths in [
        &[][..],
        &[(0, 0)],
        &[(0, 4096)],
        &[(4096, 8192)],
        &[(4097, 4096)],
        &[(4096, u64::MAX)],
        &[(512, 512)],
        &[(4096, 4096); 241],
    ] {
        assert!(refused(lengths, true), "{lengths:?}");
    }
}

#[test]
fn impossible_disks_are_refused() {
    let make = |id: &str, queues, file: File| {
        BlockDevice::new(BlockConfig {
            id: id.into(),
            parts: vec![file.into()],
            read_only: true,
            queues,
            engine: EngineKind::Auto,
        })
    };
    let file = || {
        let f = tempfile::tempfile().unwrap();
        f.set_len(MIB).unwrap();
        f
    };
    assert!(matches!(make("", 1, file()), Err(BlockError::BadId { .. })));
    assert!(matches!(
        make("aaaaaaaaaaaaaaaaaaaaa", 1, file()),
        Err(BlockError::BadId { .. })
    ));
    assert!(matches!(
        make("a", 0, file()),
        Err(BlockError::BadQueues { .. })
    ));
    assert!(matches!(
        make("a", 1, tempfile::tempfile().unwrap()),
        Err(BlockError::Backing { .. })
    ));
    assert!(matches!(
        make("a", 1, File::open("/dev/null").unwrap()),
        Err(BlockError::Backing { .. })
    ));
}
