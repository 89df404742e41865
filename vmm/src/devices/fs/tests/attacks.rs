//! What a hostile guest tries.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, symlink};

use rustix::fs::{FileType, Mode};
use vm_memory::{Bytes, GuestAddress};

use super::super::abi::{self, op};
use super::super::*;
use super::{ANSWER, Client, LIMITS, is_root, longs, named, u64_at, words};
use crate::devices::testing::DATA;
use crate::virtio::device::VirtioDevice;

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
fn only_files_and_directories_are_opened() {
    let mut client = Client::new();
    let fifo = client.share().join("fifo");
    let (kind, mode) = (FileType::Fifo, Mode::RUSR | Mode::WUSR);
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, mode, 0).unwrap();
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
    let node = server.nodes().make(
        dir,
        &stat,
        rustix::fs::FileType::Directory,
        nodes::Origin::Process,
        nodes::Place::Open,
    );
    let open = |name: &str, flags| {
        let path = rustix::fs::OFlags::PATH;
        let fd = rustix::fs::openat(&node.fd, name, path, rustix::fs::Mode::empty()).unwrap();
        let stat = super::server::stat(&fd).unwrap();
        let kind = rustix::fs::FileType::RegularFile;
        let (origin, place) = (nodes::Origin::Process, nodes::Place::Open);
        let node = server.nodes().make(fd, &stat, kind, origin, place);
        server.reopen(&node, flags).map(drop)
    };
    use rustix::fs::OFlags;
    open("stat", OFlags::RDONLY).unwrap();
    assert!(open("mem", OFlags::RDONLY).is_err());
    assert!(open("mem", OFlags::RDWR).is_err());
    assert!(open("comm", OFlags::WRONLY).is_err());
}
