//! The file server through its rings: a small FUSE client in the driver's place. It says what a
//! sane guest says, and much that a hostile one would.
//! Here is the client; what it tries is in the other files.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "lengths of messages this file makes, and patterns cut to size"
)]

mod attacks;
mod files;
mod mapped;
mod nodes;
mod random_messages;

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use vm_memory::{Bytes, GuestAddress};

use super::abi::op;
use super::*;
use crate::devices::testing::{DATA, DriverQueue, Machine};
use crate::virtio::device::VirtioDevice;

const ANSWER: u64 = DATA + 0x20_0000;
const ROOM: u32 = 0x11_0000;

pub(super) fn device(share: &Path, limits: Limits) -> FsDevice {
    let share: OwnedFd = fs::File::open(share).unwrap().into();
    let descriptors = crate::jail::descriptors().unwrap();
    let server = Server::new(share, descriptors, limits).unwrap();
    let workers = Workers::start(server, || {
        let _ = crate::jail::keep_capabilities();
        Ok(())
    })
    .unwrap();
    FsDevice::new(FsConfig {
        tag: "t".into(),
        workers,
    })
    .unwrap()
}

const LIMITS: Limits = Limits {
    nodes: 100,
    handles: 50,
};

/// A guest that has mounted the share.
struct Client {
    machine: Machine<FsDevice>,
    high: DriverQueue,
    queue: DriverQueue,
    unique: u64,
    uid: u32,
    gid: u32,
    dir: tempfile::TempDir,
}

type Reply = Result<Vec<u8>, i32>;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|w| w.to_le_bytes()).collect()
}

fn named(mut before: Vec<u8>, name: &str) -> Vec<u8> {
    before.extend_from_slice(name.as_bytes());
    before.push(0);
    before
}

impl Client {
    fn new() -> Self {
        let mut client = Client::unmounted(LIMITS);
        client.init().unwrap();
        client
    }

    fn unmounted(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let share = dir.path().join("share");
        fs::create_dir(&share).unwrap();
        Client::of(&share, dir, limits)
    }

    /// Of any directory.
    fn of(share: &Path, dir: tempfile::TempDir, limits: Limits) -> Self {
        let machine = Machine::new(device(share, limits));
        let mut queues = machine.activate(true);
        let queue = queues.remove(1);
        let high = queues.remove(0);
        Client {
            machine,
            high,
            queue,
            unique: 1,
            uid: 0,
            gid: 0,
            dir,
        }
    }

    fn share(&self) -> std::path::PathBuf {
        self.dir.path().join("share")
    }

    fn message(&mut self, opcode: u32, node: u64, body: &[u8]) -> u32 {
        self.unique += 2;
        let len = 40 + body.len() as u32;
        let mut bytes = words(&[len, opcode]);
        bytes.extend(longs(&[self.unique, node]));
        bytes.extend(words(&[self.uid, self.gid, 1, 0]));
        bytes.extend_from_slice(body);
        let mem = &self.machine.mem;
        mem.write_slice(&bytes, GuestAddress(DATA)).unwrap();
        len
    }

    fn ask(&mut self, opcode: u32, node: u64, body: &[u8]) -> Reply {
        let len = self.message(opcode, node, body);
        // In two pieces on either side, as a driver does.
        let (first, rest) = (len.min(40), len.saturating_sub(40));
        self.queue.offer(&[
            (DATA, first, false),
            (DATA + 40, rest, false),
            (ANSWER, 16, true),
            (ANSWER + 16, ROOM, true),
        ]);
        self.queue.kick();
        let (_, written) = self.queue.wait();
        self.answer(written)
    }

    fn answer(&self, written: u32) -> Reply {
        let mut bytes = vec![0; written as usize];
        let mem = &self.machine.mem;
        mem.read_slice(&mut bytes, GuestAddress(ANSWER)).unwrap();
        assert_eq!(u32_at(&bytes, 0), written);
        assert_eq!(u64_at(&bytes, 8), self.unique);
        match u32_at(&bytes, 4).cast_signed() {
            0 => Ok(bytes.split_off(16)),
            error => Err(-error),
        }
    }

    fn init(&mut self) -> Reply {
        let mut body = words(&[7, 41, 131_072, u32::MAX, u32::MAX]);
        body.resize(64, 0);
        self.ask(op::INIT, 0, &body)
    }

    fn lookup(&mut self, dir: u64, name: &str) -> Result<u64, i32> {
        let entry = self.ask(op::LOOKUP, dir, &named(vec![], name))?;
        assert_eq!(entry.len(), 128);
        Ok(u64_at(&entry, 0))
    }

    fn open(&mut self, node: u64, flags: i32) -> Result<u64, i32> {
        self.open_how(node, flags).map(|(handle, _)| handle)
    }

    /// The handle, and how the guest's kernel is to treat it.
    fn open_how(&mut self, node: u64, flags: i32) -> Result<(u64, u32), i32> {
        let flags = flags.cast_unsigned();
        let answer = self.ask(op::OPEN, node, &words(&[flags, 0]))?;
        Ok((u64_at(&answer, 0), u32_at(&answer, 8)))
    }

    fn create(&mut self, dir: u64, name: &str, flags: i32, mode: u32) -> Result<(u64, u64), i32> {
        let body = named(words(&[flags.cast_unsigned(), mode, 0, 0]), name);
        let answer = self.ask(op::CREATE, dir, &body)?;
        assert_eq!(answer.len(), 128 + 16);
        Ok((u64_at(&answer, 0), u64_at(&answer, 128)))
    }

    fn mkdir(&mut self, dir: u64, name: &str, mode: u32) -> Result<u64, i32> {
        let entry = self.ask(op::MKDIR, dir, &named(words(&[mode, 0]), name))?;
        Ok(u64_at(&entry, 0))
    }

    fn write(&mut self, node: u64, handle: u64, at: u64, data: &[u8]) -> Result<u32, i32> {
        self.write_with(node, handle, at, data, 0)
    }

    fn write_with(
        &mut self,
        node: u64,
        handle: u64,
        at: u64,
        data: &[u8],
        flags: u32,
    ) -> Result<u32, i32> {
        self.write_as(node, handle, at, data, (flags, 0))
    }

    /// With the flags of the write, and those of the open file.
    fn write_as(
        &mut self,
        node: u64,
        handle: u64,
        at: u64,
        data: &[u8],
        (how, flags): (u32, i32),
    ) -> Result<u32, i32> {
        let mut body = longs(&[handle, at]);
        let flags = flags.cast_unsigned();
        body.extend(words(&[data.len() as u32, how, 0, 0, flags, 0]));
        body.extend_from_slice(data);
        Ok(u32_at(&self.ask(op::WRITE, node, &body)?, 0))
    }

    fn read(&mut self, node: u64, handle: u64, at: u64, size: u32) -> Reply {
        let mut body = longs(&[handle, at]);
        body.extend(words(&[size, 0, 0, 0, 0, 0]));
        self.ask(op::READ, node, &body)
    }

    fn set(&mut self, node: u64, valid: u32, size: u64, mode: u32, ids: (u32, u32)) -> Reply {
        let mut body = words(&[valid, 0]);
        body.extend(longs(&[0, size, 0, 1000, 2000, 0]));
        body.extend(words(&[5, 6, 0, mode, 0, ids.0, ids.1, 0]));
        self.ask(op::SETATTR, node, &body)
    }

    fn rename(&mut self, from: (u64, &str), to: (u64, &str), flags: u32) -> Reply {
        let mut body = longs(&[to.0]);
        body.extend(words(&[flags, 0]));
        let body = named(named(body, from.1), to.1);
        self.ask(op::RENAME2, from.0, &body)
    }

    fn mknod(&mut self, dir: u64, name: &str, mode: u32, number: u32) -> Result<u64, i32> {
        let body = named(words(&[mode, number, 0o022, 0]), name);
        Ok(u64_at(&self.ask(op::MKNOD, dir, &body)?, 0))
    }

    fn set_xattr(&mut self, node: u64, name: &str, value: &[u8], how: u32) -> Result<(), i32> {
        let mut body = named(words(&[value.len() as u32, 0, how, 0]), name);
        body.extend_from_slice(value);
        self.ask(op::SETXATTR, node, &body).map(|_| ())
    }

    fn get_xattr(&mut self, node: u64, name: &str, size: u32) -> Reply {
        self.ask(op::GETXATTR, node, &named(words(&[size, 0]), name))
    }

    fn remove_xattr(&mut self, node: u64, name: &str) -> Result<(), i32> {
        self.ask(op::REMOVEXATTR, node, &named(vec![], name))
            .map(|_| ())
    }

    fn xattrs(&mut self, node: u64) -> Vec<String> {
        let listed = self.ask(op::LISTXATTR, node, &words(&[65_536, 0])).unwrap();
        let text = String::from_utf8(listed).unwrap();
        let mut names: Vec<_> = text.split_terminator('\0').map(str::to_owned).collect();
        names.sort();
        names
    }

    /// The mode, with the type, and the device's number.
    fn mode_and_number(&mut self, node: u64) -> (u32, u32) {
        let attr = self.ask(op::GETATTR, node, &longs(&[0, 0])).unwrap();
        (u32_at(&attr, 16 + 60), u32_at(&attr, 16 + 76))
    }

    fn names(&mut self, dir: u64) -> Vec<String> {
        let entries = self.entries(dir).into_iter();
        entries.map(|(name, _)| name).collect()
    }

    /// The names in a directory, and the type that the listing says each has.
    fn entries(&mut self, dir: u64) -> Vec<(String, u32)> {
        let handle = u64_at(&self.ask(op::OPENDIR, dir, &words(&[0, 0])).unwrap(), 0);
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let mut body = longs(&[handle, offset]);
            body.extend(words(&[512, 0, 0, 0, 0, 0]));
            let bytes = self.ask(op::READDIR, dir, &body).unwrap();
            if bytes.is_empty() {
                break;
            }
            let mut at = 0;
            while at < bytes.len() {
                let len = u32_at(&bytes, at + 16) as usize;
                offset = u64_at(&bytes, at + 8);
                let name = &bytes[at + 24..at + 24 + len];
                let kind = u32_at(&bytes, at + 20);
                names.push((String::from_utf8(name.to_vec()).unwrap(), kind));
                at = (at + 24 + len).next_multiple_of(8);
            }
        }
        self.ask(op::RELEASEDIR, dir, &longs(&[handle, 0, 0]))
            .unwrap();
        names.retain(|(name, _)| name != "." && name != "..");
        names.sort();
        names
    }

    fn forget(&mut self, node: u64, count: u64) {
        let len = self.message(op::FORGET, node, &longs(&[count]));
        self.high.offer(&[(DATA, len, false)]);
        self.high.kick();
        assert_eq!(self.high.wait().1, 0);
    }

    fn counter(&self, name: &str) -> u64 {
        self.machine.device().metrics()[name].as_u64().unwrap()
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
