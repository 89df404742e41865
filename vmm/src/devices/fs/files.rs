//! Requests on open files and directories.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::sync::Mutex;

use rustix::fs::{FallocateFlags, FileType, Mode, OFlags, RawDir, SeekFrom};
use rustix::io::Errno;

use super::abi;
use super::handles::Handle;
use super::mapped::{kind_of_entry, may_have_devices, strip_capability};
use super::nodes::{self, Node, Origin};
use super::reply::{self, Writer};
use super::request::Request;
use super::server::{MAX_WRITE, Outcome, Payload, Scratch, Server, stat};

use crate::sync::lock;

/// What is read of a directory at one time.
const DIR_BYTES: usize = 32 << 10;
/// What one COPY_FILE_RANGE copies, so that no request holds its thread for long; the caller
/// copies the rest, as copy_file_range(2) allows.
const MAX_COPY: u64 = 16 << 20;

/// The flags of open(2) that mean something to a file that is open already by name. Without
/// O_DIRECT: the guest's cache is passed by in the guest, and its buffers need not be aligned here.
pub(super) fn open_flags(flags: u32) -> Result<OFlags, Errno> {
    let kept = OFlags::ACCMODE
        | OFlags::APPEND
        | OFlags::TRUNC
        | OFlags::SYNC
        | OFlags::DSYNC
        | OFlags::NOATIME;
    let flags = OFlags::from_bits_retain(flags) & kept;
    let access = flags & OFlags::ACCMODE;
    if access != OFlags::RDONLY && access != OFlags::WRONLY && access != OFlags::RDWR {
        return Err(Errno::INVAL);
    }
    Ok(flags)
}

/// The flags of the answer to OPEN. One whose size does not say how much
/// can be read of it is read to its end only past the guest's page cache, which stops at the size:
/// all of the kernel's own file systems, and whatever says 0 and is only read (files of a FUSE
/// server on the node, such as lxcfs; a file that is really empty loses nothing by it).
pub(super) fn how_opened(node: &Node, writable: bool, size: u64) -> u32 {
    let mut flags = 0;
    if !writable {
        flags |= abi::FOPEN_NOFLUSH;
    }
    if node.origin != Origin::Stored || (!writable && size == 0) {
        flags |= abi::FOPEN_DIRECT_IO;
    }
    flags
}

/// Takes file capabilities away, the set-user-id bit, and the set-group-id bit where it is not one of
/// mandatory locks, as a write by one without CAP_FSETID does.
pub(super) fn strip_privileges(fd: impl AsFd) -> Result<(), Errno> {
    let mode = Mode::from_raw_mode(u32::from(stat(&fd)?.stx_mode));
    strip_capability(&fd, mode)?;
    let mut less = mode - Mode::SUID;
    if mode.contains(Mode::XGRP) {
        less -= Mode::SGID;
    }
    if less == mode {
        return Ok(());
    }
    rustix::fs::fchmod(fd, less)
}

fn offset(offset: u64) -> Result<i64, Errno> {
    i64::try_from(offset).map_err(|_| Errno::INVAL)
}

fn size(size: u32) -> usize {
    // At most a MiB.
    usize::try_from(size.min(MAX_WRITE)).unwrap_or(0)
}

impl Server {
    pub(super) fn read(
        &self,
        handle: u64,
        at: u64,
        length: u32,
        scratch: &mut Scratch<'_>,
    ) -> Outcome {
        let handle = self.handle(handle)?;
        scratch.chain.writable.truncate(size(length));
        let mut total = 0;
        loop {
            let at = offset(at.saturating_add(total as u64))?;
            let read = scratch.chain.writable.preadv(handle.fd.as_fd(), at);
            let read = match read {
                Ok(read) => read,
                // What there is so far; the guest comes back for the error.
                Err(_) if total > 0 => break,
                Err(error) => return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
            };
            total += read;
            // The kernel gives its texts a page at a time, and a short answer means their end.
            if read == 0 || !handle.origin.is_text() {
                break;
            }
            scratch.chain.writable.advance(read);
            if scratch.chain.writable.is_empty() {
                break;
            }
        }
        self.metrics.reads.add(1);
        self.metrics.bytes_read.add(total as u64);
        Ok(Payload::Placed(total))
    }

    pub(super) fn write(
        &self,
        handle: u64,
        (at, append): (u64, bool),
        length: u32,
        kill: bool,
        scratch: &mut Scratch<'_>,
    ) -> Outcome {
        let handle = self.handle(handle)?;
        if length > MAX_WRITE || size(length) > scratch.chain.readable.len() {
            return Err(Errno::INVAL);
        }
        if kill && handle.writable {
            strip_privileges(&handle.fd)?;
        }
        scratch.chain.readable.truncate(size(length));
        let (data, fd) = (&scratch.chain.readable, handle.fd.as_fd());
        let at = offset(at)?;
        let written = match append {
            // In one step with finding the end, for others append, too.
            true => data.pwritev(fd, at, libc::RWF_APPEND),
            false => data.pwritev(fd, at, 0),
        };
        let written = match written {
            // One of the kernel's own files, which has no end.
            Err(error) if append && error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                data.pwritev(fd, at, 0)
            }
            written => written,
        };
        let written = written.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        self.metrics.writes.add(1);
        self.metrics.bytes_written.add(written as u64);
        let mut w = Writer(&mut scratch.out);
        w.u32(u32::try_from(written).unwrap_or(0)).u32(0);
        Ok(Payload::Out)
    }

    pub(super) fn on_file(
        &self,
        node: u64,
        request: &Request<'_>,
        scratch: &mut Scratch<'_>,
    ) -> Outcome {
        match *request {
            Request::Open { flags, kill } => self.open(node, flags, kill, scratch),
            Request::OpenDir => self.open_dir(node, scratch),
            Request::Release { handle } => {
                let gone = self.handles().remove(handle)?;
                drop(gone);
                Ok(Payload::Out)
            }
            Request::Flush { handle } => {
                let handle = self.handle(handle)?;
                if handle.writable {
                    flush(rustix::io::fcntl_dupfd_cloexec(&handle.fd, 3)?)?;
                }
                Ok(Payload::Out)
            }
            Request::Fsync { handle, data_only } => {
                let handle = self.handle(handle)?;
                match data_only {
                    true => rustix::fs::fdatasync(&handle.fd)?,
                    false => rustix::fs::fsync(&handle.fd)?,
                }
                Ok(Payload::Out)
            }
            Request::ReadDir {
                handle,
                offset,
                size,
            } => self.read_dir(handle, offset, size, scratch),
            Request::Fallocate {
                handle,
                offset,
                length,
                mode,
            } => {
                let handle = self.handle(handle)?;
                let mode = FallocateFlags::from_bits_retain(mode);
                rustix::fs::fallocate(&handle.fd, mode, offset, length)?;
                Ok(Payload::Out)
            }
            Request::Lseek {
                handle,
                offset,
                whence,
            } => {
                let handle = self.handle(handle)?;
                let to = match libc::c_int::try_from(whence) {
                    Ok(libc::SEEK_DATA) => SeekFrom::Data(offset),
                    Ok(libc::SEEK_HOLE) => SeekFrom::Hole(offset),
                    // The rest the guest knows by itself.
                    _ => return Err(Errno::INVAL),
                };
                let found = rustix::fs::seek(&handle.fd, to)?;
                Writer(&mut scratch.out).u64(found);
                Ok(Payload::Out)
            }
            Request::CopyRange {
                handle,
                mut offset,
                to_handle,
                mut to_offset,
                length,
            } => {
                let (from, to) = (self.handle(handle)?, self.handle(to_handle)?);
                let length = usize::try_from(length.min(MAX_COPY)).unwrap_or(0);
                let copied = rustix::fs::copy_file_range(
                    &from.fd,
                    Some(&mut offset),
                    &to.fd,
                    Some(&mut to_offset),
                    length,
                )?;
                let mut w = Writer(&mut scratch.out);
                w.u32(u32::try_from(copied).unwrap_or(0)).u32(0);
                Ok(Payload::Out)
            }
            Request::SyncFs => self.sync_all(),
            _ => Err(Errno::NOSYS),
        }
    }

    fn open(&self, node: u64, flags: u32, kill: bool, scratch: &mut Scratch<'_>) -> Outcome {
        let node = self.node(node)?;
        if node.kind != FileType::RegularFile {
            return Err(Errno::NXIO);
        }
        let flags = open_flags(flags)?;
        let writable = flags & OFlags::ACCMODE != OFlags::RDONLY;
        let fd = self.open_for_guest(&node, flags)?;
        if kill && flags.contains(OFlags::TRUNC) {
            strip_privileges(&fd)?;
        }
        let how = how_opened(&node, writable, stat(&fd)?.stx_size);
        self.keep_open(fd, how, writable, None, &node, scratch)
    }

    fn open_dir(&self, node: u64, scratch: &mut Scratch<'_>) -> Outcome {
        let node = self.node(node)?;
        if node.kind != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let fd = self.reopen(&node, OFlags::RDONLY)?;
        let position = Some(Mutex::new(()));
        self.keep_open(fd, abi::FOPEN_NOFLUSH, false, position, &node, scratch)
    }

    fn keep_open(
        &self,
        fd: OwnedFd,
        how: u32,
        writable: bool,
        position: Option<Mutex<()>>,
        node: &Node,
        scratch: &mut Scratch<'_>,
    ) -> Outcome {
        let added = self.handles().add(Handle {
            fd,
            writable,
            origin: node.origin,
            position,
            device: node.device,
        });
        let handle = added.inspect_err(|_| self.metrics.limited.add(1))?;
        reply::open(&mut Writer(&mut scratch.out), handle, how);
        Ok(Payload::Out)
    }

    fn read_dir(&self, handle: u64, at: u64, length: u32, scratch: &mut Scratch<'_>) -> Outcome {
        let handle = self.handle(handle)?;
        let Some(position) = &handle.position else {
            return Err(Errno::NOTDIR);
        };
        let room = size(length)
            .min(scratch.chain.writable.len())
            .min(DIR_BYTES);
        let _one = lock(position);
        rustix::fs::seek(&handle.fd, SeekFrom::Start(at))?;
        scratch.buffer.clear();
        scratch.buffer.reserve(DIR_BYTES);
        let buffer: &mut [MaybeUninit<u8>] = scratch.buffer.spare_capacity_mut();
        let devices = handle.origin == Origin::Stored && may_have_devices(&handle.fd);
        let mut entries = RawDir::new(&handle.fd, buffer);
        let mut w = Writer(&mut scratch.out);
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                // What there is so far; the guest comes back for the error.
                Err(_) if !w.0.is_empty() => break,
                Err(error) => return Err(error),
            };
            let name = entry.file_name().to_bytes();
            if w.0.len() + reply::dirent_len(name.len()) > room {
                break;
            }
            let kind = match entry.file_type() {
                FileType::RegularFile if devices => kind_of_entry(&handle.fd, entry.file_name()),
                kind => kind,
            };
            let kind = kind.as_raw_mode() >> 12;
            let ino = nodes::ino(handle.device, entry.ino());
            reply::dirent(&mut w, ino, entry.next_entry_cookie(), kind, name);
        }
        Ok(Payload::Out)
    }

    /// The guest's kernel asks once for its one file system, which here are several.
    fn sync_all(&self) -> Outcome {
        let nodes = self.nodes().one_of_each_device();
        for node in nodes {
            let fd = self.reopen(&node, OFlags::RDONLY)?;
            rustix::fs::syncfs(&fd)?;
        }
        Ok(Payload::Out)
    }
}

/// Closes a copy of an open file: file systems that write back on close tell their errors then.
fn flush(copy: OwnedFd) -> Result<(), Errno> {
    // SAFETY: the descriptor is this function's own, and is gone with the call.
    match unsafe { libc::close(copy.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}
