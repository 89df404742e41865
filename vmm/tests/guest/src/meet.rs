//! One directory of the host under two names: its files are one file each.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};

/// What was found by `first` and then by `second` is the same; `writable` is one of the two.
/// The host has made `lock`, `pipe` (a FIFO) and `mapped` (of a page) there.
pub(super) fn check(first: &str, second: &str, writable: &str) -> io::Result<String> {
    let both = |name: &str| (format!("{first}/{name}"), format!("{second}/{name}"));
    for name in ["lock", "pipe", "mapped"] {
        let (a, b) = both(name);
        let (a, b) = (fs::symlink_metadata(a)?, fs::symlink_metadata(b)?);
        assert_eq!((a.dev(), a.ino()), (b.dev(), b.ino()), "{name}");
    }

    let (a, b) = both("lock");
    let (a, b) = (File::open(a)?, File::open(b)?);
    // SAFETY: no pointers.
    unsafe {
        assert_eq!(libc::flock(a.as_raw_fd(), libc::LOCK_EX), 0);
        let taken = libc::flock(b.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB);
        assert_eq!(taken, -1);
    }

    let (a, b) = both("pipe");
    let waits_not = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(a)?;
    OpenOptions::new().write(true).open(b)?.write_all(b"met")?;
    let mut read = [0; 3];
    (&waits_not).read_exact(&mut read)?;
    assert_eq!(&read, b"met");

    let bound = format!("{writable}/socket");
    let _listener = UnixListener::bind(&bound)?;
    let (a, b) = both("socket");
    UnixStream::connect(a)?;
    UnixStream::connect(b)?;
    fs::remove_file(bound)?;

    // What one has mapped the other reads, and what the other writes is in the mapping.
    let (a, b) = both("mapped");
    let both_ways = OpenOptions::new().read(true).write(true).open(a)?;
    let other = OpenOptions::new().read(true).write(true).open(b)?;
    // SAFETY: a mapping of a file as long as it, gone before the function ends.
    unsafe {
        let at = libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            both_ways.as_raw_fd(),
            0,
        );
        assert_ne!(at, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        let at = at.cast::<u8>();
        at.write_volatile(b'm');
        let mut byte = [0];
        other.read_exact_at(&mut byte, 0)?;
        assert_eq!(byte, *b"m");
        other.write_all_at(b"w", 1)?;
        assert_eq!(at.add(1).read_volatile(), b'w');
        libc::munmap(at.cast(), 4096);
    }

    // A hard link is made within a mount, whichever the file was found by first.
    let (from, to) = (format!("{writable}/mapped"), format!("{writable}/linked"));
    fs::hard_link(from, &to)?;
    fs::remove_file(to)?;
    Ok("done".into())
}
