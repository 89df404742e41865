//! Commands on a virtio-fs share, which is mounted at /mnt.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::time::Instant;

#[path = "builders.rs"]
mod builders;
#[path = "meet.rs"]
mod meet;

const ROOT: &str = "/mnt";

/// One command, its answer; of an error its number.
pub(crate) fn run(words: &[&str]) -> String {
    let at = |path: &str| format!("{ROOT}/{path}");
    let result = match words {
        ["mount", tag] => mount(tag),
        ["umount"] => done(unsafe_umount()),
        ["read", path] => fs::read_to_string(at(path)),
        ["write", path, text] => fs::write(at(path), text).map(|()| "done".into()),
        ["append", path, text] => append(&at(path), text),
        ["mkdir", path] => fs::create_dir(at(path)).map(|()| "done".into()),
        ["rename", from, to] => fs::rename(at(from), at(to)).map(|()| "done".into()),
        ["link", from, to] => fs::hard_link(at(from), at(to)).map(|()| "done".into()),
        ["remove", path] => fs::remove_file(at(path)).map(|()| "done".into()),
        ["stat", path] => fs::symlink_metadata(at(path)).map(|m| {
            let mode = m.mode() & 0o7777;
            format!("{} {} {mode:o} {} {}", m.uid(), m.gid(), m.len(), m.ino())
        }),
        ["ls", path] => list(&at(path)),
        ["make", uid, gid, path] => make(uid.parse().unwrap(), gid.parse().unwrap(), &at(path)),
        ["keep", path] => keep(&at(path)),
        ["check"] => check(),
        ["builders"] => builders::check(&at("rw/builders")),
        ["meet", first, second, writable] => meet::check(&at(first), &at(second), &at(writable)),
        ["idmap", path] => idmap(&at(path)),
        ["bench", path, mode, mib] => bench(&at(path), mode, mib.parse().unwrap()),
        _ => return format!("no such command: {words:?}"),
    };
    match result {
        Ok(text) => text,
        Err(e) => format!("error {}", e.raw_os_error().unwrap_or(-1)),
    }
}

fn done(result: libc::c_int) -> io::Result<String> {
    match result {
        0.. => Ok("done".into()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn c(text: &str) -> CString {
    CString::new(text).unwrap()
}

fn mount(tag: &str) -> io::Result<String> {
    fs::create_dir_all(ROOT)?;
    // SAFETY: three strings that end in zero, no data.
    done(unsafe {
        libc::mount(
            c(tag).as_ptr(),
            c(ROOT).as_ptr(),
            c("virtiofs").as_ptr(),
            0,
            std::ptr::null(),
        )
    })
}

fn unsafe_umount() -> libc::c_int {
    // SAFETY: a string that ends in zero.
    unsafe { libc::umount(c(ROOT).as_ptr()) }
}

fn append(path: &str, text: &str) -> io::Result<String> {
    let mut file = OpenOptions::new().append(true).open(path)?;
    file.write_all(text.as_bytes())?;
    Ok("done".into())
}

fn list(path: &str) -> io::Result<String> {
    let names: io::Result<Vec<_>> = fs::read_dir(path)?
        .map(|e| Ok(e?.file_name().into_string().unwrap()))
        .collect();
    let mut names = names?;
    names.sort();
    Ok(names.join(" "))
}

/// Makes a file, a directory and a link as another user, with a mask.
fn make(uid: u32, gid: u32, path: &str) -> io::Result<String> {
    // SAFETY: no pointers; the thread ends with its command.
    unsafe {
        libc::setfsgid(gid);
        libc::setfsuid(uid);
        libc::umask(0o027);
    }
    fs::create_dir(path)?;
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o666)
        .open(format!("{path}/file"))?;
    std::os::unix::fs::symlink("file", format!("{path}/link"))?;
    Ok("done".into())
}

/// Opens a file and never closes it.
fn keep(path: &str) -> io::Result<String> {
    std::mem::forget(File::open(path)?);
    Ok("done".into())
}

fn open(path: &str) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
}

/// A mapping's pages go out by whatever descriptor of the file the kernel finds: one that appends.
fn mapped_and_appended(path: &str) -> io::Result<()> {
    let mut file = open(path)?;
    file.write_all(b"0123456789")?;
    let mut log = OpenOptions::new().append(true).open(path)?;
    // SAFETY: a mapping of a file that is open, one page, unmapped below.
    let page = unsafe {
        let (both, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        libc::mmap(
            std::ptr::null_mut(),
            4096,
            both,
            shared,
            file.as_raw_fd(),
            0,
        )
    };
    assert_ne!(page, libc::MAP_FAILED, "{}", io::Error::last_os_error());
    drop(file);
    let mut expected = b"0123456789".to_vec();
    for round in 0..10u8 {
        let byte = b'a' + round;
        // SAFETY: within the page, and within the file.
        unsafe {
            page.cast::<u8>()
                .add(usize::from(round))
                .write_volatile(byte)
        };
        log.write_all(&[byte, b'\n'])?;
        expected[usize::from(round)] = byte;
        expected.extend([byte, b'\n']);
        // SAFETY: as mapped.
        assert_eq!(unsafe { libc::msync(page, 4096, libc::MS_SYNC) }, 0);
    }
    // SAFETY: as mapped.
    assert_eq!(unsafe { libc::munmap(page, 4096) }, 0);
    let text = fs::read(path)?;
    assert_eq!(text, expected, "{:?}", String::from_utf8_lossy(&text));
    Ok(())
}

/// What programs do with files, in a directory of its own.
fn check() -> io::Result<String> {
    let dir = format!("{ROOT}/rw/check");
    fs::create_dir(&dir)?;
    let at = |name: &str| format!("{dir}/{name}");
    let mut file = open(&at("a"))?;
    file.write_all(b"0123456789")?;
    file.sync_all()?;

    // A shared mapping, written and read.
    // SAFETY: a mapping of a file that is open, one page, unmapped below.
    let page = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    assert_ne!(page, libc::MAP_FAILED, "{}", io::Error::last_os_error());
    // SAFETY: within the page, and within the file.
    unsafe { page.cast::<u8>().add(3).write_volatile(b'X') };
    // SAFETY: as mapped.
    let synced = unsafe { libc::msync(page, 4096, libc::MS_SYNC) + libc::munmap(page, 4096) };
    assert_eq!(synced, 0);
    let mut text = [0; 10];
    file.read_exact_at(&mut text, 0)?;
    assert_eq!(&text, b"012X456789");

    mapped_and_appended(&at("log"))?;

    // Append, holes, sizes.
    append(&at("a"), "end")?;
    assert_eq!(fs::read(at("a"))?, b"012X456789end");
    file.set_len(1 << 20)?;
    file.write_all_at(b"far", 1 << 19)?;
    // SAFETY: no pointers.
    let data = unsafe { libc::lseek(file.as_raw_fd(), 1 << 16, libc::SEEK_DATA) };
    assert!((1 << 16..=1 << 19).contains(&data), "{data}");
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    for (mode, from, len) in [(0, 1 << 20, 4096), (punch, 0, 4096)] {
        // SAFETY: no pointers.
        let result = unsafe { libc::fallocate(file.as_raw_fd(), mode, from, len) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }
    assert_eq!(file.metadata()?.len(), (1 << 20) + 4096);
    file.read_exact_at(&mut text, 0)?;
    assert_eq!(text, [0; 10]);

    // Names.
    fs::hard_link(at("a"), at("b"))?;
    assert_eq!(fs::metadata(at("b"))?.nlink(), 2);
    fs::create_dir(at("d"))?;
    let exchange = |flags: libc::c_uint| {
        // SAFETY: strings that end in zero.
        unsafe {
            libc::syscall(
                libc::SYS_renameat2,
                libc::AT_FDCWD,
                c(&at("b")).as_ptr(),
                libc::AT_FDCWD,
                c(&at("d")).as_ptr(),
                flags,
            )
        }
    };
    assert_eq!(exchange(libc::RENAME_NOREPLACE), -1);
    assert_eq!(exchange(libc::RENAME_EXCHANGE), 0);
    assert!(fs::metadata(at("b"))?.is_dir());
    let unnamed = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .mode(0o600)
        .open(&dir)?;
    unnamed.write_all_at(b"unnamed", 0)?;
    let link = format!("/proc/self/fd/{}", unnamed.as_raw_fd());
    // SAFETY: strings that end in zero.
    let linked = unsafe {
        libc::linkat(
            libc::AT_FDCWD,
            c(&link).as_ptr(),
            libc::AT_FDCWD,
            c(&at("named")).as_ptr(),
            libc::AT_SYMLINK_FOLLOW,
        )
    };
    assert_eq!(linked, 0, "{}", io::Error::last_os_error());
    assert_eq!(fs::read(at("named"))?, b"unnamed");

    // Locks, attributes, copies.
    // SAFETY: no pointers.
    unsafe {
        assert_eq!(libc::flock(file.as_raw_fd(), libc::LOCK_EX), 0);
        let other = File::open(at("a"))?;
        let taken = libc::flock(other.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB);
        assert_eq!(taken, -1);
    }
    let (name, value) = (c("user.test"), b"value");
    let mut read = [0u8; 8];
    // SAFETY: strings that end in zero, buffers as long as said.
    unsafe {
        let fd = file.as_raw_fd();
        let set = libc::fsetxattr(fd, name.as_ptr(), value.as_ptr().cast(), 5, 0);
        if set == 0 {
            let got = libc::fgetxattr(fd, name.as_ptr(), read.as_mut_ptr().cast(), 8);
            assert_eq!((got, &read[..5]), (5, &value[..]));
        } else {
            let error = io::Error::last_os_error().raw_os_error();
            assert_eq!(error, Some(libc::EOPNOTSUPP));
        }
        let mut from = 1i64 << 19;
        let copy = open(&at("copy"))?;
        let out = copy.as_raw_fd();
        let copied = libc::copy_file_range(fd, &raw mut from, out, std::ptr::null_mut(), 3, 0);
        assert_eq!(copied, 3);
        assert_eq!(fs::read(at("copy"))?, b"far");
    }

    // A write takes the set-user-id bit away, of a user who may not keep it.
    let program = open(&at("suid"))?;
    program.set_permissions(fs::Permissions::from_mode(0o4777))?;
    assert_eq!(program.metadata()?.mode() & 0o7777, 0o4777);
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                // SAFETY: no pointers; this thread's own ids, by the bare system call.
                unsafe { libc::syscall(libc::SYS_setresuid, 1000, 1000, 1000) };
                let other = OpenOptions::new().write(true).open(at("suid"))?;
                other.write_all_at(b"x", 0)
            })
            .join()
            .unwrap()
    })?;
    assert_eq!(fs::metadata(at("suid"))?.mode() & 0o7777, 0o777);

    // A device is this kernel's, whatever the host has for it.
    // SAFETY: a string that ends in zero, and a structure that is filled.
    unsafe {
        let device = c(&at("zero"));
        let made = libc::mknod(device.as_ptr(), libc::S_IFCHR | 0o666, 0x105);
        assert_eq!(made, 0, "{}", io::Error::last_os_error());
        let meta = fs::symlink_metadata(at("zero"))?;
        assert_eq!(meta.mode() & libc::S_IFMT, libc::S_IFCHR);
        assert_eq!((meta.rdev(), meta.len()), (0x105, 0));
        let mut zeros = [1; 16];
        File::open(at("zero"))?.read_exact(&mut zeros)?;
        assert_eq!(zeros, [0; 16]);
        let listed = fs::read_dir(&dir)?.find(|e| e.as_ref().unwrap().file_name() == "zero");
        let listed = listed.unwrap()?.file_type()?;
        assert!(std::os::unix::fs::FileTypeExt::is_char_device(&listed));
        fs::remove_file(at("zero"))?;
        assert_eq!(
            libc::mknod(c(&at("fifo")).as_ptr(), libc::S_IFIFO | 0o600, 0),
            0
        );
        let mut stat: libc::statfs = std::mem::zeroed();
        assert_eq!(libc::statfs(device.as_ptr(), &raw mut stat), -1);
        assert_eq!(libc::statfs(c(&dir).as_ptr(), &raw mut stat), 0);
        assert!(stat.f_blocks > 0);
        libc::sync();
    }
    let _socket = std::os::unix::net::UnixListener::bind(at("socket"))?;
    std::os::unix::net::UnixStream::connect(at("socket"))?;
    let long = "x".repeat(256);
    let error = fs::metadata(at(&long)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
    assert_eq!(
        fs::canonicalize(format!("{ROOT}/../mnt/.."))?.to_str(),
        Some("/")
    );
    for i in 0..300 {
        fs::write(at(&format!("many{i}")), "")?;
    }
    assert_eq!(fs::read_dir(&dir)?.count(), 300 + 9);
    drop(file);
    fs::remove_dir_all(&dir)?;
    Ok("done".into())
}

/// Mounts a directory of the share once more, ids mapped, as a user namespace's volumes are, and
/// makes a file in it: as user 7 there, 100007 on the share.
fn idmap(path: &str) -> io::Result<String> {
    #[repr(C)]
    struct Attributes {
        set: u64,
        clear: u64,
        propagation: u64,
        namespace: u64,
    }
    // SAFETY: a fork of which the child does nothing but system calls; the descriptors are this
    // function's own.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::unshare(libc::CLONE_NEWUSER);
            loop {
                libc::pause();
            }
        }
        let own = fs::read_link("/proc/self/ns/user")?;
        let namespace = format!("/proc/{child}/ns/user");
        while fs::read_link(&namespace)? == own {
            libc::sched_yield();
        }
        for map in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{child}/{map}"), "0 100000 1000")?;
        }
        let namespace = File::open(namespace)?;
        let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
        let tree = libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, c(path).as_ptr(), flags);
        let tree = File::from_raw_fd(i32::try_from(tree).unwrap());
        let attributes = Attributes {
            set: 0x0010_0000,
            clear: 0,
            propagation: 0,
            namespace: namespace.as_raw_fd() as u64,
        };
        let result = libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c("").as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of_val(&attributes),
        );
        let error = io::Error::last_os_error();
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, std::ptr::null_mut(), 0);
        if result < 0 {
            return Err(error);
        }
        // Ids of the mount are 100000 and up here; without a namespace entered, user 100007 is
        // the file system's 7 as seen through the map turned around.
        libc::setfsgid(100_007);
        libc::setfsuid(100_007);
        let flags = libc::O_CREAT | libc::O_WRONLY;
        let fd = libc::openat(tree.as_raw_fd(), c("mapped").as_ptr(), flags, 0o600);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let made = File::from_raw_fd(fd);
        let meta = made.metadata()?;
        Ok(format!("{} {}", meta.uid(), meta.gid()))
    }
}

/// Megabytes per second, or operations per second for random access of 4 KiB.
fn bench(path: &str, mode: &str, mib: u64) -> io::Result<String> {
    const LARGE: usize = 1 << 20;
    let size = mib << 20;
    let mut buffer = vec![0x5a; LARGE];
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    let start = Instant::now();
    let mut count = 0u64;
    match mode {
        "write" => {
            for _ in 0..mib {
                file.write_all(&buffer)?;
                count += 1;
            }
            file.sync_all()?;
        }
        "read" => {
            file.seek(SeekFrom::Start(0))?;
            while file.read(&mut buffer)? > 0 {
                count += 1;
            }
        }
        _ => {
            let mut state = 1u64;
            let small = &mut buffer[..4096];
            for _ in 0..2000 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let at = (state >> 16) % (size / 4096) * 4096;
                match mode {
                    "randread" => file.read_exact_at(small, at)?,
                    _ => file.write_all_at(small, at)?,
                }
                count += 1;
            }
        }
    }
    Ok(format!("{count} {}", start.elapsed().as_micros()))
}
