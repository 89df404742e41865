//! Requests on a file's attributes: stat, chmod, chown, truncate, times. Extended ones are in `xattrs`.

use rustix::fs::{AtFlags, FileType, Gid, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::files::strip_privileges;
use super::mapped::{drop_capability, look};
use super::nodes::Node;
use super::reply::{self, Writer};
use super::request::{Request, SetAttr, SetTime};
use super::server::{Outcome, Payload, Scratch, Server};

/// What is read of a text at one time to see how long it is.
const TEXT_PIECE: usize = 64 << 10;
/// A text of this length is not read to its end for its size alone.
const LONG_TEXT: u64 = 1 << 20;
/// And is told to be this long.
const LONGEST_TEXT: u64 = 1 << 30;
/// How much longer a text may be when it is read than when it was measured.
const TEXT_GROWS: u64 = 512;
const TEXT_PAGE: u64 = 4096;

impl Server {
    pub(super) fn on_attributes(
        &self,
        node: u64,
        request: &Request<'_>,
        scratch: &mut Scratch<'_>,
    ) -> Outcome {
        let node = self.node(node)?;
        match *request {
            Request::GetAttr { handle } => {
                let stat = self.stat_of(&node, handle, scratch)?;
                reply::attr_out(&mut Writer(&mut scratch.out), node.ino(&stat), &stat);
            }
            Request::Statx { handle } => {
                let stat = self.stat_of(&node, handle, scratch)?;
                reply::statx_out(&mut Writer(&mut scratch.out), node.ino(&stat), &stat);
            }
            Request::SetAttr(ref wanted) => {
                self.set_attributes(&node, wanted)?;
                let stat = look(&node.fd)?;
                reply::attr_out(&mut Writer(&mut scratch.out), node.ino(&stat), &stat);
            }
            Request::StatFs => {
                let stat = rustix::fs::fstatfs(&node.fd)?;
                reply::statfs(&mut Writer(&mut scratch.out), &stat);
            }
            _ => return Err(Errno::NOSYS),
        }
        Ok(Payload::Out)
    }

    fn stat_of(
        &self,
        node: &Node,
        handle: Option<u64>,
        scratch: &mut Scratch<'_>,
    ) -> Result<rustix::fs::Statx, Errno> {
        // Through the open file where there is one: on a network file system it may know more.
        let mut stat = match handle.map(|h| self.handle(h)) {
            Some(Ok(handle)) => look(&handle.fd),
            _ => look(&node.fd),
        }?;
        if stat.stx_size == 0 && node.kind == FileType::RegularFile && node.origin.is_text() {
            stat.stx_size = self.text_size(node, scratch);
        }
        Ok(stat)
    }

    /// A size for one of the kernel's texts, which says 0 itself. The guest's read(2) needs none,
    /// but its sendfile(2) and splice(2), with which busybox copies, go no further than the size
    /// the guest's kernel was told last, which is just before it opens the file. As on sysfs it is
    /// whole pages, and never less than there is; the short answer at the end tells it the rest.
    fn text_size(&self, node: &Node, scratch: &mut Scratch<'_>) -> u64 {
        // What may not be read has none.
        let Ok(file) = self.reopen(node, OFlags::RDONLY | OFlags::NONBLOCK) else {
            return 0;
        };
        scratch.buffer.clear();
        scratch.buffer.resize(TEXT_PIECE, 0);
        let mut length = 0;
        while length < LONG_TEXT {
            match rustix::io::pread(&file, scratch.buffer.as_mut_slice(), length) {
                Ok(0) | Err(_) if length == 0 => return 0,
                Ok(0) | Err(_) => return (length + TEXT_GROWS).next_multiple_of(TEXT_PAGE),
                Ok(read) => length += read as u64,
            }
        }
        LONGEST_TEXT
    }

    fn set_attributes(&self, node: &Node, wanted: &SetAttr) -> Result<(), Errno> {
        if wanted.uid.is_some() || wanted.gid.is_some() {
            let before = rustix::fs::fstat(&node.fd)?;
            rustix::fs::chownat(
                &node.fd,
                c"",
                wanted.uid.map(Uid::from_raw),
                wanted.gid.map(Gid::from_raw),
                AtFlags::EMPTY_PATH,
            )?;
            // The guest's kernel does not say whether a call chown(2) is behind this, which takes file
            // capabilities away, or an overlay that copies a file up, which must keep them: that one
            // gives root's files to root.
            let stays = |wanted: Option<u32>, now| wanted.is_none_or(|wanted| wanted == now);
            if !stays(wanted.uid, before.st_uid) || !stays(wanted.gid, before.st_gid) {
                drop_capability(node)?;
            }
        }
        // After the owner, whose change takes set-id bits away.
        if let Some(mode) = wanted.mode {
            self.change_mode(node, mode)?;
        }
        if let Some(size) = wanted.size {
            self.truncate(node, wanted.handle, size, wanted.kill)?;
        }
        if wanted.atime.is_some() || wanted.mtime.is_some() {
            let times = Timestamps {
                last_access: timespec(wanted.atime),
                last_modification: timespec(wanted.mtime),
            };
            rustix::fs::utimensat(&node.fd, c"", &times, AtFlags::EMPTY_PATH)?;
        }
        Ok(())
    }

    fn truncate(
        &self,
        node: &Node,
        handle: Option<u64>,
        size: u64,
        kill: bool,
    ) -> Result<(), Errno> {
        let open = handle.map(|h| self.handle(h)).transpose()?;
        if let Some(handle) = open.filter(|h| h.writable) {
            rustix::fs::ftruncate(&handle.fd, size)?;
            return if kill {
                strip_privileges(&handle.fd)
            } else {
                Ok(())
            };
        }
        let fd = self.reopen(node, OFlags::WRONLY)?;
        rustix::fs::ftruncate(&fd, size)?;
        if kill { strip_privileges(&fd) } else { Ok(()) }
    }
}

fn timespec(time: Option<SetTime>) -> Timespec {
    match time {
        None => Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_OMIT,
        },
        Some(SetTime::Now) => Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_NOW,
        },
        Some(SetTime::At(seconds, nanos)) => Timespec {
            tv_sec: seconds,
            tv_nsec: nanos.into(),
        },
    }
}
