//! What a sane guest does.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use super::super::abi::{self, op};
use super::super::*;
use super::{Client, LIMITS, is_root, longs, named, u32_at, u64_at, words};
use crate::devices::testing::Machine;
use crate::virtio::device::VirtioDevice;

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
        abi::init::DONT_MASK,
        abi::init::POSIX_ACL,
        abi::init::SETXATTR_EXT,
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
    // Nobody can be made an owner by mistake.
    (client.uid, client.gid) = (u32::MAX, u32::MAX);
    assert_eq!(client.mkdir(1, "nobody", 0o755), Err(libc::EINVAL));
    (client.uid, client.gid) = (0, 0);
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
    client
        .write_as(file, append, 2, b"AB", (0, libc::O_APPEND))
        .unwrap();
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

/// What a mapping has written goes out by any descriptor of the file, one that appends, too.
#[test]
fn appends_go_to_the_end_and_mapped_pages_to_their_place() {
    let mut client = Client::new();
    let path = client.share().join("log");
    fs::write(&path, "0123456789").unwrap();
    let log = client.lookup(1, "log").unwrap();
    let append = libc::O_APPEND;
    let handle = client.open(log, libc::O_RDWR | append).unwrap();
    let cached = abi::WRITE_CACHE;
    client
        .write_as(log, handle, 2, b"map", (cached, 0))
        .unwrap();
    client
        .write_as(log, handle, 4, b"M", (cached, append))
        .unwrap();
    // Another pod has appended since the guest looked.
    client
        .write_as(log, handle, 3, b"end", (0, append))
        .unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"01maM56789end");
    // fcntl(2) takes the flag off and puts it on.
    client.write_as(log, handle, 0, b"X", (0, 0)).unwrap();
    let plain = client.open(log, libc::O_RDWR).unwrap();
    client.write_as(log, plain, 0, b"Y", (0, append)).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"X1maM56789endY");
    // Created rather than opened.
    let flags = libc::O_RDWR | libc::O_CREAT | append;
    let (new, handle) = client.create(1, "new", flags, 0o600).unwrap();
    client.write(new, handle, 0, b"0123").unwrap();
    client
        .write_as(new, handle, 1, b"map", (cached, 0))
        .unwrap();
    client.write_as(new, handle, 0, b"!", (0, append)).unwrap();
    assert_eq!(fs::read(client.share().join("new")).unwrap(), b"0map!");
    let (_, handle) = client.create(1, "log", flags, 0o600).unwrap();
    client
        .write_as(log, handle, 1, b"map", (cached, 0))
        .unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"XmapM56789endY");
    // A copy has its place, too, once the flag is off.
    let body = longs(&[plain, 1, log, handle, 6, 3, 0]);
    let copied = client.ask(op::COPY_FILE_RANGE, log, &body).unwrap();
    assert_eq!(u32_at(&copied, 0), 3);
    assert_eq!(fs::read(&path).unwrap(), b"XmapM5map9endY");
}

#[test]
fn a_file_that_is_append_only_is_appended_to() {
    use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
    let mut client = Client::new();
    let path = client.share().join("audit");
    fs::write(&path, "1").unwrap();
    let on_host = fs::File::open(&path).unwrap();
    let set = |append: bool| {
        let mut flags = ioctl_getflags(&on_host)?;
        flags.set(IFlags::APPEND, append);
        ioctl_setflags(&on_host, flags)
    };
    if set(true).is_err() {
        println!("skipped: this file system or user knows no append-only files");
        return;
    }
    let file = client.lookup(1, "audit").unwrap();
    assert_eq!(client.open(file, libc::O_WRONLY), Err(libc::EPERM));
    let opened = client.open(file, libc::O_WRONLY | libc::O_APPEND);
    let written =
        opened.and_then(|handle| client.write_as(file, handle, 0, b"2", (0, libc::O_APPEND)));
    set(false).unwrap();
    assert_eq!(written, Ok(1));
    assert_eq!(fs::read(&path).unwrap(), b"12");
}

/// The guest's page cache reads no further than a file's size, which the kernel's own files do not
/// have.
#[test]
fn files_without_a_size_are_read_past_the_guests_cache() {
    let mut client = Client::of(Path::new("/"), tempfile::tempdir().unwrap(), LIMITS);
    client.init().unwrap();
    let mut file = |path: &str| {
        let names = path.split('/').filter(|name| !name.is_empty());
        let node = names.fold(1, |dir, name| client.lookup(dir, name).unwrap());
        let attr = client.ask(op::GETATTR, node, &longs(&[0, 0])).unwrap();
        let size = u64_at(&attr, 16 + 8);
        let (handle, how) = client.open_how(node, libc::O_RDONLY).unwrap();
        let text = client.read(node, handle, 0, 1 << 20).unwrap();
        // sendfile(2) in the guest goes by the size: it is never less than there is, and whole
        // pages, of which the last is not full.
        assert!(size > text.len() as u64, "{path}: {size}");
        assert_eq!(size % 4096, 0, "{path}");
        (how, text)
    };
    for path in [
        "/proc/version",
        // More than the kernel gives at one time.
        "/proc/cpuinfo",
        "/proc/kallsyms",
        "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
    ] {
        let Ok(text) = fs::read(path) else {
            println!("skipped: there is no {path}");
            continue;
        };
        let (how, seen) = file(path);
        assert!(how & abi::FOPEN_DIRECT_IO != 0, "{path}: {how:#x}");
        // Numbers in some of them change, and a request ends at a MiB.
        let whole = text.len().min(1 << 20);
        assert!(
            seen.len().abs_diff(whole) < 64,
            "{path}: {} of {whole}",
            seen.len()
        );
        assert_eq!(seen[..1], text[..1], "{path}");
    }

    let mut client = Client::new();
    let share = client.share();
    fs::write(share.join("empty"), "").unwrap();
    fs::write(share.join("full"), "x").unwrap();
    let mut direct = |name: &str, flags| {
        let node = client.lookup(1, name).unwrap();
        let (_, how) = client.open_how(node, flags).unwrap();
        how & abi::FOPEN_DIRECT_IO != 0
    };
    assert!(direct("empty", libc::O_RDONLY));
    // It may be written through the cache, and mapped.
    assert!(!direct("empty", libc::O_RDWR));
    assert!(!direct("full", libc::O_RDONLY));
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
    let agreed = saved.state["agreed"].as_u64().unwrap();
    assert!(agreed & abi::init::SETXATTR_EXT != 0, "{agreed:#x}");
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
    let file = client.lookup(1, "file").unwrap();
    // In the words that were agreed on.
    client.set_xattr(file, "user.x", b"1", 0).unwrap();
}
