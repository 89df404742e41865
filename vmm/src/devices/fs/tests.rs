//! The file server through its rings: a small FUSE client in the driver's place. It says what a
//! sane guest says, and much that a hostile one would.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "lengths of messages this file makes, and patterns cut to size"
)]

use std::ffi::CString;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use vm_memory::{Bytes, GuestAddress};

use super::abi::{self, op};
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

type Answer = Result<Vec<u8>, i32>;

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
        fs::create_dir(dir.path().join("share")).unwrap();
        let machine = Machine::new(device(&dir.path().join("share"), limits));
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

    fn ask(&mut self, opcode: u32, node: u64, body: &[u8]) -> Answer {
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

    fn answer(&self, written: u32) -> Answer {
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

    fn init(&mut self) -> Answer {
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
        let flags = flags.cast_unsigned();
        Ok(u64_at(&self.ask(op::OPEN, node, &words(&[flags, 0]))?, 0))
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
        let mut body = longs(&[handle, at]);
        body.extend(words(&[data.len() as u32, flags, 0, 0, 0, 0]));
        body.extend_from_slice(data);
        Ok(u32_at(&self.ask(op::WRITE, node, &body)?, 0))
    }

    fn read(&mut self, node: u64, handle: u64, at: u64, size: u32) -> Answer {
        let mut body = longs(&[handle, at]);
        body.extend(words(&[size, 0, 0, 0, 0, 0]));
        self.ask(op::READ, node, &body)
    }

    fn set(&mut self, node: u64, valid: u32, size: u64, mode: u32, ids: (u32, u32)) -> Answer {
        let mut body = words(&[valid, 0]);
        body.extend(longs(&[0, size, 0, 1000, 2000, 0]));
        body.extend(words(&[5, 6, 0, mode, 0, ids.0, ids.1, 0]));
        self.ask(op::SETATTR, node, &body)
    }

    fn rename(&mut self, from: (u64, &str), to: (u64, &str), flags: u32) -> Answer {
        let mut body = longs(&[to.0]);
        body.extend(words(&[flags, 0]));
        let body = named(named(body, from.1), to.1);
        self.ask(op::RENAME2, from.0, &body)
    }

    fn names(&mut self, dir: u64) -> Vec<String> {
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
                names.push(String::from_utf8(name.to_vec()).unwrap());
                at = (at + 24 + len).next_multiple_of(8);
            }
        }
        self.ask(op::RELEASEDIR, dir, &longs(&[handle, 0, 0]))
            .unwrap();
        names.retain(|n| n != "." && n != "..");
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
    // SAFETY: no preconditions.
    unsafe { libc::geteuid() == 0 }
}

#[test]
fn init_agrees_on_what_both_know() {
    let mut client = Client::unmounted(LIMITS);
    assert_eq!(client.lookup(1, "x"), Err(libc::ENOTCONN));
    assert_eq!(
        client.ask(op::INIT, 0, &words(&[7, 20, 0, 0])),
        Err(libc::EPROTO)
    );
    let answer = client.init().unwrap();
    assert_eq!(answer.len(), 64);
    let flags = u64::from(u32_at(&answer, 12)) | u64::from(u32_at(&answer, 32)) << 32;
    for flag in [
        abi::init::AUTO_INVAL_DATA,
        abi::init::HANDLE_KILLPRIV_V2,
        abi::init::ALLOW_IDMAP,
        abi::init::MAX_PAGES,
    ] {
        assert!(flags & flag != 0, "{flag:#x} of {flags:#x}");
    }
    // No writeback cache, no POSIX locks of the host, no export by handle.
    assert_eq!(flags & (1 << 16 | 1 << 1 | 1 << 10 | 1 << 4), 0);
    assert_eq!(u32_at(&answer, 20), 1 << 20);
    // Only what the guest offered.
    let mut body = words(&[7, 41, 0, 1 << 22, 0]);
    body.resize(64, 0);
    let answer = client.ask(op::INIT, 0, &body).unwrap();
    assert_eq!((u32_at(&answer, 12), u32_at(&answer, 32)), (1 << 22, 0));
}

#[test]
fn files_are_made_written_read_and_removed() {
    let mut client = Client::new();
    let dir = client.mkdir(1, "dir", 0o755).unwrap();
    let (file, handle) = client
        .create(dir, "file", libc::O_RDWR | libc::O_EXCL, 0o640)
        .unwrap();
    assert_eq!(client.write(file, handle, 0, b"hello world"), Ok(11));
    assert_eq!(client.read(file, handle, 6, 100).unwrap(), b"world");
    let on_host = client.share().join("dir/file");
    assert_eq!(fs::read(&on_host).unwrap(), b"hello world");
    // What the host writes is there at once.
    fs::write(&on_host, b"HELLO").unwrap();
    assert_eq!(client.read(file, handle, 0, 100).unwrap(), b"HELLO");
    // A MiB at once.
    let large: Vec<u8> = (0..1 << 20).map(|i| (i / 7) as u8).collect();
    assert_eq!(client.write(file, handle, 3, &large), Ok(1 << 20));
    assert_eq!(client.read(file, handle, 3, 1 << 20).unwrap(), large);
    assert_eq!(client.names(dir), ["file"]);
    client.rename((dir, "file"), (1, "moved"), 0).unwrap();
    assert_eq!(client.names(1), ["dir", "moved"]);
    assert_eq!(client.lookup(1, "moved"), Ok(file));
    client.ask(op::UNLINK, 1, &named(vec![], "moved")).unwrap();
    // Open files outlive their name.
    assert_eq!(client.read(file, handle, 3, 5).unwrap(), large[..5]);
    client.ask(op::RMDIR, 1, &named(vec![], "dir")).unwrap();
    client
        .ask(op::FLUSH, file, &longs(&[handle, 0, 0]))
        .unwrap();
    client.ask(op::FSYNC, file, &longs(&[handle, 0])).unwrap();
    client
        .ask(op::RELEASE, file, &longs(&[handle, 0, 0]))
        .unwrap();
    assert_eq!(client.read(file, handle, 0, 1), Err(libc::EBADF));
    assert_eq!(client.counter("handles"), 0);
    client.forget(file, 2);
    client.forget(dir, 1);
    assert_eq!(client.counter("nodes"), 0);
    assert!(client.names(1).is_empty());
}

#[test]
fn no_name_leads_out_of_the_share() {
    let mut client = Client::new();
    fs::write(client.dir.path().join("secret"), "secret").unwrap();
    let dir = client.mkdir(1, "dir", 0o755).unwrap();
    let long = "x".repeat(256);
    for name in ["..", ".", "", "../secret", "/etc/passwd", "dir/../..", "a/"] {
        for at in [1, dir] {
            let wrong = Err(libc::EINVAL);
            assert_eq!(client.lookup(at, name), wrong, "{name:?}");
            assert_eq!(client.mkdir(at, name, 0o755), wrong);
            assert!(client.create(at, name, libc::O_RDWR, 0o644).is_err());
            assert_eq!(client.rename((at, "dir"), (1, name), 0), Err(libc::EINVAL));
            assert_eq!(client.rename((at, name), (1, "dir"), 0), Err(libc::EINVAL));
            for opcode in [op::UNLINK, op::RMDIR] {
                let answer = client.ask(opcode, at, &named(vec![], name));
                assert_eq!(answer, Err(libc::EINVAL));
            }
            let answer = client.ask(op::LINK, at, &named(longs(&[dir]), name));
            assert_eq!(answer, Err(libc::EINVAL));
        }
    }
    assert_eq!(client.lookup(1, &long), Err(libc::ENAMETOOLONG));
    // Without its end, and with one in the middle: the first part is the name.
    assert_eq!(client.ask(op::LOOKUP, 1, b"dir"), Err(libc::EINVAL));
    assert!(client.ask(op::LOOKUP, 1, b"dir\0/../x\0").is_ok());
}

#[test]
fn links_are_told_of_and_never_followed() {
    let mut client = Client::new();
    let outside = client.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    symlink(&outside, client.share().join("dir")).unwrap();
    symlink(outside.join("secret"), client.share().join("file")).unwrap();
    symlink("/proc/self/root/etc", client.share().join("magic")).unwrap();
    for name in ["dir", "file", "magic"] {
        let link = client.lookup(1, name).unwrap();
        let target = client.ask(op::READLINK, link, &[]).unwrap();
        assert_eq!(
            target,
            fs::read_link(client.share().join(name))
                .unwrap()
                .as_os_str()
                .as_encoded_bytes()
        );
        // Not a directory to look into, nor a file to open, nor one to write by.
        assert_eq!(client.lookup(link, "secret"), Err(libc::ENOTDIR));
        assert_eq!(client.mkdir(link, "x", 0o755), Err(libc::ENOTDIR));
        assert!(client.open(link, libc::O_RDONLY).is_err());
        assert!(client.ask(op::OPENDIR, link, &words(&[0, 0])).is_err());
        let size = abi::fattr::SIZE;
        assert!(client.set(link, size, 0, 0, (0, 0)).is_err());
        // Creating over it opens nothing.
        assert!(client.create(1, name, libc::O_RDWR, 0o644).is_err());
    }
    assert_eq!(fs::read(outside.join("secret")).unwrap(), b"secret");
    // The owner of the link is the link's.
    if is_root() {
        let link = client.lookup(1, "file").unwrap();
        client.set(link, abi::fattr::UID, 0, 0, (1234, 0)).unwrap();
        let meta = fs::symlink_metadata(client.share().join("file")).unwrap();
        assert_eq!(meta.uid(), 1234);
        assert_eq!(fs::metadata(outside.join("secret")).unwrap().uid(), 0);
    }
    // A directory that becomes a link after it was looked up stays the directory.
    let dir = client.mkdir(1, "swapped", 0o755).unwrap();
    fs::rename(client.share().join("swapped"), client.share().join("old")).unwrap();
    symlink(&outside, client.share().join("swapped")).unwrap();
    client.mkdir(dir, "made", 0o755).unwrap();
    assert!(client.share().join("old/made").is_dir());
    assert!(!outside.join("made").exists());
}

#[test]
fn stale_numbers_name_nothing() {
    let mut client = Client::new();
    fs::write(client.share().join("file"), "x").unwrap();
    let file = client.lookup(1, "file").unwrap();
    let handle = client.open(file, libc::O_RDONLY).unwrap();
    client
        .ask(op::RELEASE, file, &longs(&[handle, 0, 0]))
        .unwrap();
    for handle in [handle, 0, u64::MAX] {
        assert_eq!(client.read(file, handle, 0, 1), Err(libc::EBADF));
        assert_eq!(client.write(file, handle, 0, b"x"), Err(libc::EBADF));
        let again = client.ask(op::RELEASE, file, &longs(&[handle, 0, 0]));
        assert_eq!(again, Err(libc::EBADF));
    }
    client.forget(file, 1);
    for node in [file, 0, 77, u64::MAX] {
        assert_eq!(client.open(node, libc::O_RDONLY), Err(libc::ESTALE));
        assert_eq!(client.lookup(node, "x"), Err(libc::ESTALE));
        client.forget(node, u64::MAX);
    }
    // Forgetting the root changes nothing, and numbers are not given twice.
    client.forget(1, u64::MAX);
    assert_ne!(client.lookup(1, "file"), Ok(file));
    // All at once.
    client.ask(op::DESTROY, 0, &[]).unwrap();
    assert_eq!(client.counter("nodes"), 0);
    assert_eq!(client.lookup(1, "file"), Err(libc::ENOTCONN));
}

#[test]
fn tables_are_bounded_and_forgetting_frees() {
    let mut client = Client::unmounted(Limits {
        nodes: 4,
        handles: 2,
    });
    client.init().unwrap();
    for name in ["a", "b", "c", "d"] {
        fs::write(client.share().join(name), name).unwrap();
    }
    let a = client.lookup(1, "a").unwrap();
    client.lookup(1, "b").unwrap();
    client.lookup(1, "c").unwrap();
    assert_eq!(client.lookup(1, "d"), Err(libc::ENFILE));
    assert_eq!(
        client.create(1, "e", libc::O_RDWR, 0o644),
        Err(libc::ENFILE)
    );
    assert_eq!(client.counter("limited"), 2);
    // A second name for what is known takes no room.
    assert_eq!(client.lookup(1, "a"), Ok(a));
    client.forget(a, 1);
    assert_eq!(client.lookup(1, "d"), Err(libc::ENFILE));
    client.forget(a, 1);
    let d = client.lookup(1, "d").unwrap();
    let first = client.open(d, libc::O_RDONLY).unwrap();
    client.open(d, libc::O_RDONLY).unwrap();
    assert_eq!(client.open(d, libc::O_RDONLY), Err(libc::ENFILE));
    client.ask(op::RELEASE, d, &longs(&[first, 0, 0])).unwrap();
    client.open(d, libc::O_RDONLY).unwrap();
    // A reset closes all.
    client.machine.device().reset();
    assert_eq!((client.counter("nodes"), client.counter("handles")), (0, 0));
}

#[test]
fn owners_and_modes_are_the_guests() {
    if !is_root() {
        println!("skipped: needs root");
        return;
    }
    let mut client = Client::new();
    (client.uid, client.gid) = (1000, 2000);
    let dir = client.mkdir(1, "dir", 0o2775).unwrap();
    client
        .set(dir, abi::fattr::MODE, 0, 0o2775, (0, 0))
        .unwrap();
    (client.uid, client.gid) = (1001, 2001);
    let (file, handle) = client.create(dir, "file", libc::O_RDWR, 0o4711).unwrap();
    let body = named(words(&[libc::S_IFIFO | 0o600, 0, 0, 0]), "fifo");
    client.ask(op::MKNOD, 1, &body).unwrap();
    client
        .ask(op::SYMLINK, 1, &named(named(vec![], "link"), "/etc/passwd"))
        .unwrap();
    let meta = |name: &str| fs::symlink_metadata(client.share().join(name)).unwrap();
    assert_eq!((meta("dir").uid(), meta("dir").gid()), (1000, 2000));
    // The directory passes its group on.
    assert_eq!(
        (meta("dir/file").uid(), meta("dir/file").gid()),
        (1001, 2000)
    );
    assert_eq!(meta("dir/file").permissions().mode() & 0o7777, 0o4711);
    assert_eq!((meta("link").uid(), meta("link").gid()), (1001, 2001));
    assert!(meta("fifo").file_type().is_fifo());
    // A write by one who may not keep it takes the set-user-id bit away.
    client
        .write_with(file, handle, 0, b"x", abi::WRITE_KILL_SUIDGID)
        .unwrap();
    let mode = fs::metadata(client.share().join("dir/file"))
        .unwrap()
        .mode();
    assert_eq!(mode & 0o7777, 0o711);
    // Nobody can be made an owner by mistake, and devices not at all.
    (client.uid, client.gid) = (u32::MAX, u32::MAX);
    assert_eq!(client.mkdir(1, "nobody", 0o755), Err(libc::EINVAL));
    (client.uid, client.gid) = (0, 0);
    for kind in [libc::S_IFCHR, libc::S_IFBLK] {
        let body = named(words(&[kind | 0o666, 0x103, 0, 0]), "null");
        assert_eq!(client.ask(op::MKNOD, 1, &body), Err(libc::EPERM));
    }
    client
        .set(
            file,
            abi::fattr::UID | abi::fattr::GID | abi::fattr::SIZE | abi::fattr::MTIME,
            7,
            0,
            (5, 6),
        )
        .unwrap();
    let meta = fs::metadata(client.share().join("dir/file")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.len()), (5, 6, 7));
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (2000, 6));
    let to_nobody = client.set(file, abi::fattr::UID, 0, 0, (u32::MAX, 0));
    assert_eq!(to_nobody, Err(libc::EINVAL));
    // The threads are again who they were.
    fs::set_permissions(client.share(), fs::Permissions::from_mode(0o700)).unwrap();
    client.mkdir(1, "after", 0o755).unwrap();
}

#[test]
fn only_files_and_directories_are_opened() {
    let mut client = Client::new();
    let fifo = CString::new(client.share().join("fifo").as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: a zero-terminated path.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    let _socket = std::os::unix::net::UnixListener::bind(client.share().join("sock")).unwrap();
    for name in ["fifo", "sock"] {
        let node = client.lookup(1, name).unwrap();
        // It would wait for a writer.
        assert_eq!(client.open(node, libc::O_RDONLY), Err(libc::ENXIO));
        assert_eq!(client.open(node, libc::O_RDWR), Err(libc::ENXIO));
        let truncated = client.set(node, abi::fattr::SIZE, 0, 0, (0, 0));
        assert_eq!(truncated, Err(libc::ENXIO));
        assert!(client.create(1, name, libc::O_RDWR, 0o600).is_err());
    }
    assert_eq!(client.open(1, libc::O_RDONLY), Err(libc::ENXIO));
}

#[test]
fn extended_attributes_are_the_users_only() {
    let mut client = Client::new();
    let path = client.share().join("file");
    fs::write(&path, "x").unwrap();
    let file = client.lookup(1, "file").unwrap();
    let set = |name: &str, value: &str| {
        let mut body = named(words(&[value.len() as u32, 0]), name);
        body.extend_from_slice(value.as_bytes());
        body
    };
    if rustix::fs::setxattr(&path, "user.host", b"1", rustix::fs::XattrFlags::empty()).is_err() {
        println!("skipped: this file system has no extended attributes");
        return;
    }
    client
        .ask(op::SETXATTR, file, &set("user.guest", "value"))
        .unwrap();
    let get = |name: &str, size: u32| named(words(&[size, 0]), name);
    let value = client.ask(op::GETXATTR, file, &get("user.guest", 100));
    assert_eq!(value.unwrap(), b"value");
    let length = client.ask(op::GETXATTR, file, &get("user.guest", 0));
    assert_eq!(u32_at(&length.unwrap(), 0), 5);
    let small = client.ask(op::GETXATTR, file, &get("user.guest", 2));
    assert_eq!(small, Err(libc::ERANGE));
    let listed = client.ask(op::LISTXATTR, file, &words(&[1000, 0])).unwrap();
    assert_eq!(listed.len(), "user.host\0user.guest\0".len());
    for name in [
        "security.capability",
        "trusted.x",
        "system.posix_acl_access",
        "x",
    ] {
        let refused = Err(libc::EOPNOTSUPP);
        assert_eq!(client.ask(op::SETXATTR, file, &set(name, "v")), refused);
        assert_eq!(client.ask(op::GETXATTR, file, &get(name, 9)), refused);
        let removed = client.ask(op::REMOVEXATTR, file, &named(vec![], name));
        assert_eq!(removed, refused);
    }
    // A length beyond the message, and one beyond the limit.
    let mut long = named(words(&[4000, 0]), "user.x");
    assert_eq!(client.ask(op::SETXATTR, file, &long), Err(libc::EINVAL));
    long[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(client.ask(op::SETXATTR, file, &long), Err(libc::E2BIG));
    client
        .ask(op::REMOVEXATTR, file, &named(vec![], "user.guest"))
        .unwrap();
}

#[test]
fn the_rest_of_a_file_system() {
    let mut client = Client::new();
    let (file, handle) = client.create(1, "a", libc::O_RDWR, 0o644).unwrap();
    client.write(file, handle, 0, b"0123456789").unwrap();
    // A hard link, also over a rename's flags.
    client
        .ask(op::LINK, 1, &named(longs(&[file]), "b"))
        .unwrap();
    assert_eq!(client.lookup(1, "b"), Ok(file));
    assert_eq!(
        client.rename((1, "a"), (1, "b"), libc::RENAME_NOREPLACE),
        Err(libc::EEXIST)
    );
    client.mkdir(1, "d", 0o755).unwrap();
    client
        .rename((1, "a"), (1, "d"), libc::RENAME_EXCHANGE)
        .unwrap();
    assert!(client.share().join("a").is_dir());
    assert_eq!(client.rename((1, "a"), (1, "e"), 64), Err(libc::EINVAL));
    // Append goes to the end, whatever offset the guest believes in.
    let append = client.open(file, libc::O_WRONLY | libc::O_APPEND).unwrap();
    client.write(file, append, 2, b"AB").unwrap();
    assert_eq!(client.read(file, handle, 0, 50).unwrap(), b"0123456789AB");
    let cut = client.open(file, libc::O_RDWR | libc::O_TRUNC).unwrap();
    assert_eq!(client.read(file, cut, 0, 50).unwrap(), b"");
    // Space without data, and where the data is.
    let mut body = longs(&[cut, 0, 1 << 20]);
    body.extend(words(&[0, 0]));
    client.ask(op::FALLOCATE, file, &body).unwrap();
    let meta = fs::metadata(client.share().join("b")).unwrap();
    assert_eq!(meta.len(), 1 << 20);
    let seek = |whence: i32, at: u64| {
        let mut body = longs(&[cut, at]);
        body.extend(words(&[whence.cast_unsigned(), 0]));
        body
    };
    let hole = client.ask(op::LSEEK, file, &seek(libc::SEEK_HOLE, 0));
    assert!(u64_at(&hole.unwrap(), 0) <= 1 << 20);
    let wrong = client.ask(op::LSEEK, file, &seek(libc::SEEK_SET, 0));
    assert_eq!(wrong, Err(libc::EINVAL));
    let beyond = client.ask(op::LSEEK, file, &seek(libc::SEEK_DATA, 2 << 20));
    assert_eq!(beyond, Err(libc::ENXIO));
    // A copy on the host.
    client.write(file, cut, 0, b"copied").unwrap();
    let (to, to_handle) = client.create(1, "c", libc::O_RDWR, 0o644).unwrap();
    let body = longs(&[cut, 0, to, to_handle, 0, 6, 0]);
    let copied = client.ask(op::COPY_FILE_RANGE, file, &body).unwrap();
    assert_eq!(u32_at(&copied, 0), 6);
    assert_eq!(client.read(to, to_handle, 0, 9).unwrap(), b"copied");
    // A file without a name, then with one.
    let body = named(words(&[libc::O_RDWR.cast_unsigned(), 0o600, 0, 0]), "x");
    match client.ask(op::TMPFILE, 1, &body) {
        Ok(answer) => {
            let (node, handle) = (u64_at(&answer, 0), u64_at(&answer, 128));
            client.write(node, handle, 0, b"named").unwrap();
            client
                .ask(op::LINK, 1, &named(longs(&[node]), "named"))
                .unwrap();
            assert_eq!(fs::read(client.share().join("named")).unwrap(), b"named");
        }
        Err(error) => assert_eq!(error, libc::EOPNOTSUPP),
    }
    let stat = client.ask(op::STATFS, 1, &[]).unwrap();
    assert_eq!(stat.len(), 80);
    assert!(u64_at(&stat, 0) > 0);
    let attr = client.ask(op::GETATTR, file, &longs(&[0, 0])).unwrap();
    assert_eq!(attr.len(), 104);
    let statx = client.ask(op::STATX, file, &longs(&[0, 0, 0])).unwrap();
    assert_eq!(statx.len(), 288);
    assert_eq!(u64_at(&statx, 32 + 40), 1 << 20);
    client.ask(op::SYNCFS, 1, &longs(&[0])).unwrap();
    assert_eq!(client.ask(op::READ - 6, 1, &[]), Err(libc::EINVAL));
    assert_eq!(client.ask(4242, 1, &[]), Err(libc::ENOSYS));
}

#[test]
fn counts_beyond_reason_are_refused_or_cut() {
    let mut client = Client::new();
    let (file, handle) = client.create(1, "f", libc::O_RDWR, 0o644).unwrap();
    client.write(file, handle, 0, b"abc").unwrap();
    // More than the buffer holds, and offsets that are none.
    assert_eq!(client.read(file, handle, 0, u32::MAX).unwrap(), b"abc");
    assert_eq!(client.read(file, handle, u64::MAX, 1), Err(libc::EINVAL));
    assert_eq!(
        client.write(file, handle, u64::MAX, b"x"),
        Err(libc::EINVAL)
    );
    let mut body = longs(&[handle, 0]);
    body.extend(words(&[u32::MAX, 0, 0, 0, 0, 0]));
    assert_eq!(client.ask(op::WRITE, file, &body), Err(libc::EINVAL));
    body[16..20].copy_from_slice(&5u32.to_le_bytes());
    // Five bytes announced, none there.
    assert_eq!(client.ask(op::WRITE, file, &body), Err(libc::EINVAL));
    let mut forgets = words(&[u32::MAX, 0]);
    forgets.extend(longs(&[file, 1]));
    let len = client.message(op::BATCH_FORGET, 0, &forgets);
    client.high.offer(&[(DATA, len, false)]);
    client.high.kick();
    client.high.wait();
    assert!(client.open(file, libc::O_RDONLY).is_ok());
    // A length that is none, no room for an answer, nothing at all.
    for (length, room) in [(0u32, 64u32), (39, 64), (100_000, 64), (48, 0), (48, 8)] {
        client.message(op::GETATTR, 1, &longs(&[0, 0]));
        let mem = &client.machine.mem;
        mem.write_obj(length, GuestAddress(DATA)).unwrap();
        client
            .queue
            .offer(&[(DATA, 56, false), (ANSWER, room, true)]);
        client.queue.kick();
        assert_eq!(client.queue.wait().1, 0, "{length} {room}");
    }
    // Room for the header alone.
    client.message(op::GETATTR, 1, &longs(&[0, 0]));
    client.queue.offer(&[(DATA, 56, false), (ANSWER, 16, true)]);
    client.queue.kick();
    let (_, written) = client.queue.wait();
    assert_eq!(client.answer(written), Err(libc::EINVAL));
    let long = vec![b'x'; 80_000];
    assert_eq!(client.ask(op::LOOKUP, 1, &long), Err(libc::E2BIG));
    // Directory offsets are whatever the guest says.
    let dir = u64_at(&client.ask(op::OPENDIR, 1, &words(&[0, 0])).unwrap(), 0);
    for offset in [u64::MAX, 1 << 63, 12_345, i64::MAX as u64] {
        let mut body = longs(&[dir, offset]);
        body.extend(words(&[4096, 0, 0, 0, 0, 0]));
        let _ = client.ask(op::READDIR, 1, &body);
    }
    let data_of_dir = client.read(1, dir, 0, 10);
    assert!(data_of_dir.is_err());
    assert!(client.names(1).contains(&"f".to_owned()));
}

#[test]
fn it_is_saved_while_the_guest_holds_nothing() {
    let mut client = Client::new();
    fs::write(client.share().join("file"), "x").unwrap();
    assert!(client.machine.device().save().is_err(), "it runs");
    let file = client.lookup(1, "file").unwrap();
    client.machine.device().quiesce().unwrap();
    let error = client.machine.device().save().unwrap_err().to_string();
    assert!(error.contains("holds 1 files"), "{error}");
    client.machine.device().resume().unwrap();
    client.forget(file, 1);
    client.machine.device().quiesce().unwrap();
    let saved = client.machine.device().save().unwrap();
    assert_eq!(saved.queues.len(), 2);
    assert_eq!(saved.state["mounted"], true);
    let again = |state: &serde_json::Value| {
        let share: OwnedFd = fs::File::open(client.share()).unwrap().into();
        let descriptors = crate::jail::descriptors().unwrap();
        let server = Server::new(share, descriptors, LIMITS).unwrap();
        let workers = Workers::start(server, || Ok(())).unwrap();
        let config = FsConfig {
            tag: "t".into(),
            workers,
        };
        FsDevice::restore(config, state)
    };
    let mut other = saved.state.clone();
    other["tag"] = "other".into();
    assert!(again(&other).is_err());
    // The copy goes on in the same rings, mounted as it was.
    let copy = again(&saved.state).unwrap();
    let copy = Machine::with_memory(copy, client.machine.mem.clone());
    let mut queues = copy.activate_at(&saved.queues, 0);
    client.high = queues.remove(0);
    client.queue = queues.remove(0);
    client.machine = copy;
    client.lookup(1, "file").unwrap();
}

#[test]
fn a_guest_that_was_given_proc_cannot_write_this_process() {
    let share: OwnedFd = fs::File::open("/proc").unwrap().into();
    let descriptors = crate::jail::descriptors().unwrap();
    let server = Server::new(share, descriptors, LIMITS).unwrap();
    // The root's own file system is not asked for: a share is never a procfs. One below it is.
    let dir = rustix::fs::open(
        "/proc/self",
        rustix::fs::OFlags::RDONLY,
        rustix::fs::Mode::empty(),
    )
    .unwrap();
    let stat = super::server::stat(&dir).unwrap();
    let (_, node) = server
        .nodes()
        .add(dir, &stat, rustix::fs::FileType::Directory, true)
        .unwrap();
    let open = |name: &str, flags| {
        let path = rustix::fs::OFlags::PATH;
        let fd = rustix::fs::openat(&node.fd, name, path, rustix::fs::Mode::empty()).unwrap();
        let stat = super::server::stat(&fd).unwrap();
        let kind = rustix::fs::FileType::RegularFile;
        let (_, node) = server.nodes().add(fd, &stat, kind, true).unwrap();
        server.reopen(&node, flags).map(drop)
    };
    use rustix::fs::OFlags;
    open("stat", OFlags::RDONLY).unwrap();
    assert!(open("mem", OFlags::RDONLY).is_err());
    assert!(open("mem", OFlags::RDWR).is_err());
    assert!(open("comm", OFlags::WRONLY).is_err());
}
