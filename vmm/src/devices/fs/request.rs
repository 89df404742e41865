//! What a FUSE message says. Pure: bytes of the guest in, a checked request out.
//!
//! Every length is checked here, and every name: one component of at most 255 bytes that is
//! neither `.` nor `..`. So no request can name anything but a direct entry of a directory the
//! guest holds, and nothing above the share.

use std::ffi::CStr;

use rustix::io::Errno;

use super::abi::{self, IN_HEADER, op};
use super::reader::Reader;

/// The longest message but for the data of WRITE: a xattr's value, its name, and the rest.
pub const MAX_MESSAGE: usize = 72 * 1024;
/// What is looked at of a WRITE: header and `fuse_write_in`.
pub const WRITE_HEAD: usize = IN_HEADER + 40;
/// Linux's own limits.
const MAX_TARGET: usize = 4095;
const MAX_XATTR_NAME: usize = 255;
/// XATTR_SIZE_MAX, XATTR_LIST_MAX.
pub const MAX_XATTR: u32 = 65_536;

/// `fuse_in_header`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Of the whole message.
    pub len: u32,
    /// What is wanted.
    pub opcode: u32,
    /// Names the request in its answer.
    pub unique: u64,
    /// The node it is about.
    pub node: u64,
    /// Who asks; all ones where it does not matter (on an id-mapped mount).
    pub uid: u32,
    /// As `uid`.
    pub gid: u32,
}

/// Times to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// The host's present.
    Now,
    /// Seconds, nanoseconds.
    At(i64, u32),
}

/// `fuse_setattr_in`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// An open file to do it on.
    pub handle: Option<u64>,
    /// Permission bits.
    pub mode: Option<u32>,
    /// The owner.
    pub uid: Option<u32>,
    /// The group.
    pub gid: Option<u32>,
    /// The length.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
    /// Set-id bits go (a truncation by one who may not keep them).
    pub kill: bool,
}

/// What a FUSE message asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields are those of the protocol's structures")]
pub enum Request<'a> {
    Init {
        major: u32,
        minor: u32,
        max_readahead: u32,
        flags: u64,
    },
    Destroy,
    Interrupt,
    Lookup {
        name: &'a CStr,
    },
    Forget {
        count: u64,
    },
    BatchForget(BatchForget<'a>),
    GetAttr {
        handle: Option<u64>,
    },
    Statx {
        handle: Option<u64>,
    },
    SetAttr(SetAttr),
    ReadLink,
    Symlink {
        name: &'a CStr,
        target: &'a CStr,
    },
    Mknod {
        name: &'a CStr,
        mode: u32,
        umask: u32,
        device: u32,
    },
    Mkdir {
        name: &'a CStr,
        mode: u32,
        umask: u32,
    },
    Unlink {
        name: &'a CStr,
    },
    Rmdir {
        name: &'a CStr,
    },
    Rename {
        name: &'a CStr,
        to: u64,
        to_name: &'a CStr,
        flags: u32,
    },
    Link {
        node: u64,
        name: &'a CStr,
    },
    Open {
        flags: u32,
        kill: bool,
    },
    Create {
        name: &'a CStr,
        flags: u32,
        mode: u32,
        umask: u32,
        kill: bool,
    },
    Tmpfile {
        flags: u32,
        mode: u32,
        umask: u32,
    },
    Read {
        handle: u64,
        offset: u64,
        size: u32,
    },
    Write {
        handle: u64,
        offset: u64,
        size: u32,
        kill: bool,
        /// At the file's end, wherever that is by now.
        append: bool,
    },
    StatFs,
    Release {
        handle: u64,
    },
    Flush {
        handle: u64,
    },
    Fsync {
        handle: u64,
        data_only: bool,
    },
    SetXattr {
        name: &'a CStr,
        value: &'a [u8],
        flags: u32,
        /// With an access ACL: the set-group-id bit goes.
        kill_sgid: bool,
    },
    GetXattr {
        name: &'a CStr,
        size: u32,
    },
    ListXattr {
        size: u32,
    },
    RemoveXattr {
        name: &'a CStr,
    },
    OpenDir,
    ReadDir {
        handle: u64,
        offset: u64,
        size: u32,
    },
    Fallocate {
        handle: u64,
        offset: u64,
        length: u64,
        mode: u32,
    },
    Lseek {
        handle: u64,
        offset: u64,
        whence: u32,
    },
    CopyRange {
        handle: u64,
        offset: u64,
        to_handle: u64,
        to_offset: u64,
        length: u64,
    },
    SyncFs,
}

/// The pairs of node and count of a BATCH_FORGET.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchForget<'a>(&'a [u8]);

impl Iterator for BatchForget<'_> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<(u64, u64)> {
        let mut reader = Reader(self.0);
        let pair = (reader.u64().ok()?, reader.u64().ok()?);
        self.0 = reader.0;
        Some(pair)
    }
}

impl Header {
    /// Reads it from the front of a message of which `total` bytes there are.
    ///
    /// # Errors
    /// When the message is malformed.
    pub fn parse(message: &[u8], total: usize) -> Result<Self, Errno> {
        let mut r = Reader(message);
        let header = Header {
            len: r.u32()?,
            opcode: r.u32()?,
            unique: r.u64()?,
            node: r.u64()?,
            uid: r.u32()?,
            gid: r.u32()?,
        };
        r.skip(8)?;
        let len = usize::try_from(header.len).map_err(|_| Errno::INVAL)?;
        if len < IN_HEADER || len > total {
            return Err(Errno::INVAL);
        }
        Ok(header)
    }
}

impl<'a> Request<'a> {
    /// Reads what follows the header. Of a WRITE that is `fuse_write_in` alone. `agreed` are the flags
    /// of INIT that both sides know.
    ///
    /// # Errors
    /// INVAL and NAMETOOLONG for what is malformed, NOSYS for what there is not.
    pub fn parse(header: &Header, body: &'a [u8], agreed: u64) -> Result<Self, Errno> {
        let mut r = Reader(body);
        Ok(match header.opcode {
            op::INIT => init(&mut r)?,
            op::DESTROY => Request::Destroy,
            op::INTERRUPT => Request::Interrupt,
            op::LOOKUP => Request::Lookup { name: r.name()? },
            op::FORGET => Request::Forget { count: r.u64()? },
            op::BATCH_FORGET => {
                let count = usize::try_from(r.u32()?).map_err(|_| Errno::INVAL)?;
                r.skip(4)?;
                let bytes = count.checked_mul(16).ok_or(Errno::INVAL)?;
                Request::BatchForget(BatchForget(r.take(bytes)?))
            }
            op::GETATTR => Request::GetAttr {
                handle: flagged_handle(&mut r)?,
            },
            op::STATX => Request::Statx {
                handle: flagged_handle(&mut r)?,
            },
            op::SETATTR => Request::SetAttr(set_attr(&mut r)?),
            op::READLINK => Request::ReadLink,
            op::SYMLINK => Request::Symlink {
                name: r.name()?,
                target: r.string(MAX_TARGET)?,
            },
            op::MKNOD => {
                let (mode, device, umask) = (r.u32()?, r.u32()?, r.u32()?);
                r.skip(4)?;
                Request::Mknod {
                    name: r.name()?,
                    mode,
                    umask,
                    device,
                }
            }
            op::MKDIR => {
                let (mode, umask) = (r.u32()?, r.u32()?);
                let name = r.name()?;
                Request::Mkdir { name, mode, umask }
            }
            op::UNLINK => Request::Unlink { name: r.name()? },
            op::RMDIR => Request::Rmdir { name: r.name()? },
            op::RENAME | op::RENAME2 => rename(&mut r, header.opcode == op::RENAME2)?,
            op::LINK => {
                let node = r.u64()?;
                let name = r.name()?;
                Request::Link { node, name }
            }
            op::OPEN => {
                let (flags, more) = (r.u32()?, r.u32()?);
                let kill = more & abi::OPEN_KILL_SUIDGID != 0;
                Request::Open { flags, kill }
            }
            op::OPENDIR => Request::OpenDir,
            op::CREATE | op::TMPFILE => create(&mut r, header.opcode == op::TMPFILE)?,
            op::READ | op::READDIR => {
                let (handle, offset, size) = (r.u64()?, r.u64()?, r.u32()?);
                r.skip(20)?;
                match header.opcode {
                    op::READ => Request::Read {
                        handle,
                        offset,
                        size,
                    },
                    _ => Request::ReadDir {
                        handle,
                        offset,
                        size,
                    },
                }
            }
            op::WRITE => {
                let (handle, offset, size, how) = (r.u64()?, r.u64()?, r.u32()?, r.u32()?);
                r.skip(8)?; // lock_owner
                let flags = r.u32()?;
                r.skip(4)?;
                // The flags are those of the file at the time of its write, for fcntl(2) changes
                // them. What a mapping has written goes out by any descriptor of the file.
                let appends = flags & libc::O_APPEND.cast_unsigned() != 0;
                Request::Write {
                    handle,
                    offset,
                    size,
                    kill: how & abi::WRITE_KILL_SUIDGID != 0,
                    append: appends && how & abi::WRITE_CACHE == 0,
                }
            }
            op::STATFS => Request::StatFs,
            op::RELEASE | op::RELEASEDIR => Request::Release { handle: r.u64()? },
            op::FLUSH => Request::Flush { handle: r.u64()? },
            op::FSYNC | op::FSYNCDIR => {
                let (handle, flags) = (r.u64()?, r.u32()?);
                Request::Fsync {
                    handle,
                    data_only: flags & abi::FSYNC_DATA_ONLY != 0,
                }
            }
            op::SETXATTR => {
                let (size, flags) = (r.u32()?, r.u32()?);
                let mut more = 0;
                if agreed & abi::init::SETXATTR_EXT != 0 {
                    more = r.u32()?;
                    r.skip(4)?;
                }
                if size > MAX_XATTR {
                    return Err(Errno::TOOBIG);
                }
                let name = r.string(MAX_XATTR_NAME)?;
                let value = r.take(usize::try_from(size).map_err(|_| Errno::INVAL)?)?;
                Request::SetXattr {
                    name,
                    value,
                    flags,
                    kill_sgid: more & abi::SETXATTR_ACL_KILL_SGID != 0,
                }
            }
            op::GETXATTR => {
                let size = r.u32()?.min(MAX_XATTR);
                r.skip(4)?;
                let name = r.string(MAX_XATTR_NAME)?;
                Request::GetXattr { name, size }
            }
            op::LISTXATTR => Request::ListXattr {
                size: r.u32()?.min(MAX_XATTR),
            },
            op::REMOVEXATTR => Request::RemoveXattr {
                name: r.string(MAX_XATTR_NAME)?,
            },
            op::FALLOCATE => Request::Fallocate {
                handle: r.u64()?,
                offset: r.u64()?,
                length: r.u64()?,
                mode: r.u32()?,
            },
            op::LSEEK => Request::Lseek {
                handle: r.u64()?,
                offset: r.u64()?,
                whence: r.u32()?,
            },
            op::COPY_FILE_RANGE => copy(&mut r)?,
            op::SYNCFS => Request::SyncFs,
            _ => return Err(Errno::NOSYS),
        })
    }
}

/// Whether an answer is owed. The three that have none are recognised before they are parsed, as
/// a malformed one has none either.
#[must_use]
pub fn wants_answer(opcode: u32) -> bool {
    !matches!(opcode, op::FORGET | op::BATCH_FORGET | op::INTERRUPT)
}

fn init<'a>(r: &mut Reader<'a>) -> Result<Request<'a>, Errno> {
    let (major, minor, max_readahead, flags) = (r.u32()?, r.u32()?, r.u32()?, r.u32()?);
    let mut flags = u64::from(flags);
    if flags & abi::init::INIT_EXT != 0 {
        flags |= u64::from(r.u32()?) << 32;
    }
    Ok(Request::Init {
        major,
        minor,
        max_readahead,
        flags,
    })
}

/// GETATTR and STATX: flags, something, a handle if the flags say so.
fn flagged_handle(r: &mut Reader<'_>) -> Result<Option<u64>, Errno> {
    let flags = r.u32()?;
    r.skip(4)?;
    let handle = r.u64()?;
    Ok((flags & abi::GETATTR_FH != 0).then_some(handle))
}

fn set_attr(r: &mut Reader<'_>) -> Result<SetAttr, Errno> {
    use abi::fattr;
    let valid = r.u32()?;
    r.skip(4)?;
    let (handle, size) = (r.u64()?, r.u64()?);
    r.skip(8)?; // lock_owner
    let (atime, mtime) = (r.u64()?, r.u64()?);
    r.skip(8)?; // ctime
    let (atime_nsec, mtime_nsec) = (r.u32()?, r.u32()?);
    r.skip(4)?;
    let mode = r.u32()?;
    r.skip(4)?;
    let (uid, gid) = (r.u32()?, r.u32()?);
    r.skip(4)?;
    let has = |flag| valid & flag != 0;
    let time = |set, now, seconds: u64, nanos| match (has(set), has(now)) {
        (_, true) => Ok(Some(SetTime::Now)),
        (true, false) if nanos < 1_000_000_000 => {
            // Times before 1970 come as the two's complement.
            Ok(Some(SetTime::At(seconds.cast_signed(), nanos)))
        }
        (true, false) => Err(Errno::INVAL),
        (false, false) => Ok(None),
    };
    // All ones is "no id" to chown(2), and must not become "leave it".
    if has(fattr::UID) && uid == u32::MAX || has(fattr::GID) && gid == u32::MAX {
        return Err(Errno::INVAL);
    }
    Ok(SetAttr {
        handle: has(fattr::FH).then_some(handle),
        mode: has(fattr::MODE).then_some(mode),
        uid: has(fattr::UID).then_some(uid),
        gid: has(fattr::GID).then_some(gid),
        size: has(fattr::SIZE).then_some(size),
        atime: time(fattr::ATIME, fattr::ATIME_NOW, atime, atime_nsec)?,
        mtime: time(fattr::MTIME, fattr::MTIME_NOW, mtime, mtime_nsec)?,
        kill: has(fattr::KILL_SUIDGID),
    })
}

fn rename<'a>(r: &mut Reader<'a>, with_flags: bool) -> Result<Request<'a>, Errno> {
    let to = r.u64()?;
    let flags = if with_flags {
        let flags = r.u32()?;
        r.skip(4)?;
        flags
    } else {
        0
    };
    if flags & !(libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE | libc::RENAME_WHITEOUT) != 0 {
        return Err(Errno::INVAL);
    }
    Ok(Request::Rename {
        to,
        flags,
        name: r.name()?,
        to_name: r.name()?,
    })
}

fn create<'a>(r: &mut Reader<'a>, unnamed: bool) -> Result<Request<'a>, Errno> {
    let (flags, mode, umask, more) = (r.u32()?, r.u32()?, r.u32()?, r.u32()?);
    if unnamed {
        return Ok(Request::Tmpfile { flags, mode, umask });
    }
    Ok(Request::Create {
        name: r.name()?,
        flags,
        mode,
        umask,
        kill: more & abi::OPEN_KILL_SUIDGID != 0,
    })
}

fn copy<'a>(r: &mut Reader<'a>) -> Result<Request<'a>, Errno> {
    let (handle, offset) = (r.u64()?, r.u64()?);
    r.skip(8)?; // the second file is named by its handle
    let (to_handle, to_offset, length) = (r.u64()?, r.u64()?, r.u64()?);
    if r.u64()? != 0 {
        return Err(Errno::INVAL);
    }
    Ok(Request::CopyRange {
        handle,
        offset,
        to_handle,
        to_offset,
        length,
    })
}

#[cfg(test)]
mod tests;
