//! A page of memory that a process shares with the launcher during its last steps: what is
//! executed, and why the kernel refused. Once the container's seccomp filter is loaded, execve is
//! the only system call that is sure to be allowed, so the process cannot write to a pipe; it can
//! still write to memory. execve unmaps the page.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;

/// A number, a length, and a path of 4096 bytes at most.
const SIZE: usize = 8192;
const PATH_AT: usize = 8;

/// A new page, by its descriptor. Its size is fixed.
///
/// # Errors
/// If memory is short.
pub fn new() -> Result<OwnedFd, Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create(c"outcome", flags)?;
    rustix::fs::ftruncate(&fd, SIZE as u64)?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(fd)
}

/// The page, mapped to be written.
#[derive(Debug)]
pub struct Page(NonNull<u8>);

impl Page {
    /// Maps it, until the process ends or executes something else.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn map(fd: impl AsFd) -> Result<Self, Errno> {
        // SAFETY: a new mapping at an address that the kernel chooses, so it overlaps nothing. The file's
        // size is fixed by seals, so that it always covers the mapping.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_fd().as_raw_fd(),
                0,
            )
        };
        if at == libc::MAP_FAILED {
            let error = std::io::Error::last_os_error();
            return Err(Errno::from_io_error(&error).unwrap_or(Errno::NOMEM));
        }
        NonNull::new(at.cast()).map(Self).ok_or(Errno::NOMEM)
    }

    /// Notes what is going to be executed.
    pub fn note(&self, path: &Path) {
        let bytes = path.as_os_str().as_bytes();
        let length = bytes.len().min(SIZE - PATH_AT);
        // SAFETY: the mapping has SIZE bytes and lives as long as this process's image; no
        // reference into it exists in this process. Bytes that another process changes meanwhile
        // are copied as they are.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.as_ptr().add(PATH_AT), length);
        }
        self.word(4)
            .store(u32::try_from(length).unwrap_or(0), Ordering::Release);
    }

    /// Notes the kernel's answer, without a system call.
    pub fn refused(&self, error: Errno) {
        let number = error.raw_os_error().unsigned_abs();
        self.word(0).store(number, Ordering::Release);
    }

    fn word(&self, at: usize) -> &AtomicU32 {
        // SAFETY: `at` is 0 or 4, inside the mapping and aligned for a u32; the mapping is never removed
        // while `self` lives, and it is accessed by atomics only, which other processes may share.
        unsafe { &*self.0.as_ptr().add(at).cast::<AtomicU32>() }
    }
}

/// What a page contains: the path and why it could not be executed, or nothing.
///
/// # Errors
/// If it cannot be read.
pub fn read(fd: impl AsFd) -> Result<Option<(PathBuf, Errno)>, Errno> {
    let mut bytes = [0; SIZE];
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match rustix::io::pread(&fd, rest, done as u64) {
            Ok(0) => break,
            Ok(length) => done += length,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(parse(&bytes))
}

fn parse(bytes: &[u8]) -> Option<(PathBuf, Errno)> {
    let word = |at: usize| {
        let word = bytes.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_ne_bytes(word))
    };
    let number = i32::try_from(word(0)?)
        .ok()
        .filter(|number| (1..4096).contains(number))?;
    let length = usize::try_from(word(4)?).ok()?;
    let path = bytes.get(PATH_AT..)?;
    let path = path.get(..length).unwrap_or(path);
    Some((
        OsStr::from_bytes(path).into(),
        Errno::from_raw_os_error(number),
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_page_reads_back_what_was_written() {
        let fd = new().unwrap();
        assert_eq!(read(&fd), Ok(None));
        let page = Page::map(&fd).unwrap();
        page.note(Path::new("/bin/x"));
        assert_eq!(read(&fd), Ok(None));
        page.refused(Errno::NOEXEC);
        assert_eq!(read(&fd), Ok(Some(("/bin/x".into(), Errno::NOEXEC))));
        page.note(Path::new(&"x".repeat(2 * SIZE)));
        assert!(read(&fd).is_ok_and(|found| found.is_some()));
    }

    proptest! {
        #[test]
        fn hostile_pages_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..SIZE)) {
            parse(&bytes);
        }
    }
}
