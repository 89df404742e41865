//! One file of a tree: its content, and all that it has besides.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{Gid, Mode, SeekFrom, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::error::{Failure, step};

/// Blocks of this length that are all zeros become holes; the others are written.
const BLOCK: usize = 4096;
const ZERO: [u8; BLOCK] = [0; BLOCK];
const BUFFER: usize = 32 * BLOCK;
/// limits.h: XATTR_LIST_MAX and XATTR_SIZE_MAX.
const LONGEST_ATTRIBUTE: usize = 65536;
/// What is read into, again and again.
pub(super) struct Buffers {
    data: Vec<u8>,
    attributes: Vec<u8>,
    value: Vec<u8>,
}

impl Buffers {
    pub(super) fn new() -> Self {
        Self {
            data: vec![0; BUFFER],
            attributes: vec![0; LONGEST_ATTRIBUTE],
            value: vec![0; LONGEST_ATTRIBUTE],
        }
    }

    /// Content and attributes of a file.
    pub(super) fn fill(
        &mut self,
        source: OwnedFd,
        stat: &Stat,
        copy: OwnedFd,
    ) -> Result<(), Failure> {
        let (source, copy) = (File::from(source), File::from(copy));
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        content(&source, &copy, size, &mut self.data)?;
        self.finish(source.as_fd(), stat, copy.as_fd())
    }

    /// Everything but the content. The order matters: a new owner takes capabilities and set-id bits
    /// away, an access list sets the mode's bits of the group, and all of it changes times.
    pub(super) fn finish(
        &mut self,
        source: BorrowedFd<'_>,
        stat: &Stat,
        copy: BorrowedFd<'_>,
    ) -> Result<(), Failure> {
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        rustix::fs::fchown(copy, Some(uid), Some(gid)).map_err(step("setting the owner of"))?;
        self.extended(source, copy)?;
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        rustix::fs::fchmod(copy, mode).map_err(step("setting the mode of"))?;
        rustix::fs::futimens(copy, &times(stat)).map_err(step("setting the times of"))
    }

    /// The extended attributes. By the descriptors' names in /proc, as those of what is opened without
    /// being read have no calls of their own.
    pub(super) fn extended(
        &mut self,
        source: BorrowedFd<'_>,
        copy: BorrowedFd<'_>,
    ) -> Result<(), Failure> {
        let name = |fd: BorrowedFd<'_>| format!("/proc/self/fd/{}", fd.as_raw_fd());
        let (source, copy) = (name(source), name(copy));
        let reading = "reading the extended attributes of";
        let length = match rustix::fs::listxattr(&source, &mut self.attributes[..]) {
            Ok(length) => length,
            Err(Errno::NOTSUP) => return Ok(()),
            Err(error) => return Err(step(reading)(error)),
        };
        let list = self.attributes.get(..length).unwrap_or_default();
        for name in list.split_inclusive(|byte| *byte == 0) {
            let Ok(name) = CStr::from_bytes_with_nul(name) else {
                continue;
            };
            if !is_copied(name.to_bytes()) {
                continue;
            }
            let length = match rustix::fs::getxattr(&source, name, &mut self.value[..]) {
                Ok(length) => length,
                Err(Errno::NODATA) => continue,
                Err(error) => return Err(step(reading)(error)),
            };
            let value = self.value.get(..length).unwrap_or_default();
            match rustix::fs::setxattr(&copy, name, value, XattrFlags::empty()) {
                // A file system that has none of this kind.
                Ok(()) | Err(Errno::NOTSUP) => {}
                Err(error) => return Err(step("setting the extended attributes of")(error)),
            }
        }
        Ok(())
    }
}

/// What else there is belongs to a file system or to the node's security module, not to the content:
/// `trusted.overlay.*` above all.
fn is_copied(name: &[u8]) -> bool {
    name.starts_with(b"user.")
        || [
            &b"security.capability"[..],
            b"system.posix_acl_access",
            b"system.posix_acl_default",
        ]
        .contains(&name)
}

/// Copies data that is neither a hole nor zeros. In user space: the kernel copies by itself within
/// one file system only (copy_file_range(2), since Linux 5.19), and an overlay is another one than
/// what is below it.
fn content(source: &File, copy: &File, size: u64, buffer: &mut [u8]) -> Result<(), Failure> {
    let (reading, writing) = (step("reading"), step("writing"));
    let mut at = 0;
    while at < size {
        at = match rustix::fs::seek(source, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(reading(error.into())),
        };
        let hole = rustix::fs::seek(source, SeekFrom::Hole(at));
        let end = hole.map_err(io::Error::from).map_err(&reading)?.min(size);
        while at < end {
            let left = usize::try_from(end - at).unwrap_or(usize::MAX);
            let length = left.min(buffer.len());
            let part = buffer.get_mut(..length).unwrap_or_default();
            let length = source.read_at(part, at).map_err(&reading)?;
            if length == 0 {
                // It has become shorter.
                break;
            }
            let mut rest = part.get(..length).unwrap_or_default();
            while let Some(first) = rest.chunks(BLOCK).next() {
                let zero = is_zero(first);
                let alike = rest
                    .chunks(BLOCK)
                    .take_while(|block| is_zero(block) == zero);
                let (run, after) = rest.split_at(alike.map(<[u8]>::len).sum());
                if !zero {
                    copy.write_all_at(run, at).map_err(&writing)?;
                }
                at += u64::try_from(run.len()).unwrap_or(0);
                rest = after;
            }
        }
        if at < end {
            break;
        }
    }
    copy.set_len(size).map_err(writing)
}

fn is_zero(block: &[u8]) -> bool {
    ZERO.get(..block.len()) == Some(block)
}

pub(super) fn times(stat: &Stat) -> Timestamps {
    let time = |tv_sec, nanoseconds| Timespec {
        tv_sec,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}
