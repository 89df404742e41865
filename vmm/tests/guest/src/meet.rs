//! One directory of the host under two names: its files are one file each.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};

/// What was found by `first` and then by `second` is the same; `writable` is one of the two.
/// The host has made `lock`, `pipe` (a FIFO) and `mapped` (of a page) there.
pub(super) fn check(first: &str, second: &str, writable: &str) -> io::Result<String> {
    let both = |name: &str| (format!("{first}/{name}"), format!("{second}/{name}"));
    // In use until the end: what is not is forgotten, and found anew by whoever comes first.
    let _known = (
        File::open(format!("{first}/mapped"))?,
        File::open(format!("{second}/mapped"))?,
    );
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

    // What one has mapped and written the other has mapped, too.
    let other = match writable == first {
        true => second,
        false => first,
    };
    let page = |dir: &str, write: bool| -> io::Result<*mut u8> {
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(write)
            .open(format!("{dir}/mapped"))?;
        let protection = libc::PROT_READ | if write { libc::PROT_WRITE } else { 0 };
        // SAFETY: a new mapping of a file as long as it.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                4096,
                protection,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        Ok(at.cast())
    };
    let (written, read) = (page(writable, true)?, page(other, false)?);
    // SAFETY: both are a page, which nothing else here touches, and are not used after.
    unsafe {
        written.write_volatile(b'm');
        assert_eq!(read.read_volatile(), b'm');
        libc::munmap(written.cast(), 4096);
        libc::munmap(read.cast(), 4096);
    }

    // A hard link is made within a mount, whichever the file was found by first.
    let (from, to) = (format!("{writable}/mapped"), format!("{writable}/linked"));
    fs::hard_link(from, &to)?;
    fs::remove_file(to)?;
    Ok("done".into())
}
