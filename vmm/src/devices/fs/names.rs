//! Requests on a directory's entries: looking up, making, moving, removing.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Statx};
use rustix::io::Errno;

use super::caller::Caller;
use super::files::{how_opened, open_flags, strip_privileges};
use super::handles::Handle;
use super::mapped::{Beginning, beginning, is_device, kind, look, mark_devices, may_have_devices};
use super::nodes::{Added, Node, Origin, Place};
use super::reply::{self, Writer};
use super::request::{Header, Request};
use super::server::{Outcome, Payload, Scratch, Server, name_of, stat};
use super::special::Device;

/// PROC_SUPER_MAGIC (statfs(2)).
const PROCFS: i64 = 0x9fa0;
/// Debugfs and tracefs (linux/magic.h).
const STREAMS: [i64; 2] = [0x6462_6720, 0x7472_6163];
/// Other file systems of the kernel's own texts (linux/magic.h): sysfs, cgroup and cgroup2,
/// securityfs, configfs, bpf, pstore, efivarfs, selinuxfs, smackfs and resctrl.
const KERNEL_TEXTS: [i64; 11] = [
    0x6265_6572,
    0x0027_e0eb,
    0x6367_7270,
    0x7363_6673,
    0x6265_6570,
    0xcafe_4a11,
    0x6165_676c,
    0xde5e_81e4,
    0xf97c_ff8c,
    0x4341_5d53,
    0x0765_5821,
];
/// How often a file may be met by another mount while it is looked at, before the guest looks again.
const MEETINGS: usize = 8;
/// Names a file without opening it; a symbolic link names itself.
const BY_NAME: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What is behind the files of the file system with this magic number.
pub(super) fn origin(magic: i64) -> Origin {
    match magic {
        PROCFS => Origin::Process,
        magic if STREAMS.contains(&magic) => Origin::Stream,
        // Some are above i32::MAX: which way they came to 64 bits does not matter.
        magic if KERNEL_TEXTS.contains(&(magic & 0xffff_ffff)) => Origin::Kernel,
        _ => Origin::Stored,
    }
}

fn find(dir: &Node, name: &CStr) -> Result<(OwnedFd, Statx), Errno> {
    let fd = rustix::fs::openat(&dir.fd, name, BY_NAME, Mode::empty())?;
    let stat = look(&fd)?;
    Ok((fd, stat))
}

/// Before a file is moved from one directory to another: where there are devices is noted of the
/// directory they are in.
fn follow_device(from: &Node, name: &CStr, to: &Node) {
    if may_have_devices(&from.fd) && find(from, name).is_ok_and(|(_, s)| is_device(kind(&s))) {
        mark_devices(to);
    }
}

/// Removes what could not be made whole.
fn undo(dir: &Node, name: &CStr, kind: FileType) {
    let flags = match kind {
        FileType::Directory => AtFlags::REMOVEDIR,
        _ => AtFlags::empty(),
    };
    let _ = rustix::fs::unlinkat(&dir.fd, name, flags);
}

impl Server {
    pub(super) fn on_name(
        &self,
        header: &Header,
        request: &Request<'_>,
        scratch: &mut Scratch<'_>,
    ) -> Outcome {
        let dir = self.node(header.node)?;
        let caller = || Caller::become_one(header.uid, header.gid);
        match *request {
            Request::Lookup { name } => self.reply_with_entry(&dir, name, scratch),
            Request::Mkdir { name, mode, umask } => {
                let begin = beginning(&dir, FileType::Directory, mode, umask);
                let made = caller()?;
                rustix::fs::mkdirat(&dir.fd, name, begin.first_mode())?;
                drop(made);
                self.reply_with_new(&dir, name, &begin, scratch)
            }
            Request::Mknod {
                name,
                mode,
                umask,
                device,
            } => {
                let begin = self.make_node(&dir, name, (mode, umask), device, caller)?;
                self.reply_with_new(&dir, name, &begin, scratch)
            }
            Request::Symlink { name, target } => {
                let made = caller()?;
                rustix::fs::symlinkat(target, &dir.fd, name)?;
                drop(made);
                self.reply_with_entry(&dir, name, scratch)
            }
            Request::Link { node, name } => {
                // linkat(2) links within a mount alone.
                let file = self.nodes().get_beside(node, &dir)?;
                if is_device(file.kind) {
                    mark_devices(&dir);
                }
                // By the descriptor's own link: linkat(2) takes a bare descriptor only from those
                // who may open files by handle.
                rustix::fs::linkat(
                    &self.descriptors,
                    &*name_of(&file.fd)?,
                    &dir.fd,
                    name,
                    AtFlags::SYMLINK_FOLLOW,
                )?;
                self.reply_with_entry(&dir, name, scratch)
            }
            Request::Create {
                name,
                flags,
                mode,
                umask,
                kill,
            } => {
                let begin = beginning(&dir, FileType::RegularFile, mode, umask);
                let made = caller()?;
                let (fd, stat) = self.create(&dir, name, flags, &begin, kill, made)?;
                self.reply_with_open_entry(&dir, name, fd, &stat, flags, scratch)
            }
            Request::Tmpfile { flags, mode, umask } => {
                let begin = beginning(&dir, FileType::RegularFile, mode, umask);
                let flags = open_flags(flags)? | OFlags::TMPFILE | OFlags::CLOEXEC;
                let made = caller()?;
                let fd = rustix::fs::openat(&dir.fd, c".", flags, begin.first_mode())?;
                drop(made);
                self.finish(&begin, &fd)?;
                let stat = stat(&fd)?;
                self.reply_with_open_entry(&dir, c"", fd, &stat, flags.bits(), scratch)
            }
            Request::Unlink { name } => {
                rustix::fs::unlinkat(&dir.fd, name, AtFlags::empty())?;
                Ok(Payload::Out)
            }
            Request::Rmdir { name } => {
                rustix::fs::unlinkat(&dir.fd, name, AtFlags::REMOVEDIR)?;
                Ok(Payload::Out)
            }
            Request::Rename {
                name,
                to,
                to_name,
                flags,
            } => {
                let target = self.node(to)?;
                let flags = RenameFlags::from_bits_retain(flags);
                if to != header.node {
                    follow_device(&dir, name, &target);
                    if flags.contains(RenameFlags::EXCHANGE) {
                        follow_device(&target, to_name, &dir);
                    }
                }
                // A whiteout that is left behind is the caller's.
                let made = match flags.contains(RenameFlags::WHITEOUT) {
                    true => Some(caller()?),
                    false => None,
                };
                rustix::fs::renameat_with(&dir.fd, name, &target.fd, to_name, flags)?;
                drop(made);
                Ok(Payload::Out)
            }
            Request::ReadLink => {
                let buffer = std::mem::take(&mut scratch.buffer);
                let target = rustix::fs::readlinkat(&dir.fd, c"", buffer)?;
                scratch.out.extend_from_slice(target.to_bytes());
                scratch.buffer = target.into_bytes();
                Ok(Payload::Out)
            }
            _ => Err(Errno::NOSYS),
        }
    }

    /// Answers with an entry of `dir`.
    fn reply_with_entry(&self, dir: &Node, name: &CStr, scratch: &mut Scratch<'_>) -> Outcome {
        let (fd, stat) = find(dir, name)?;
        self.add_entry(dir, name, fd, &stat, scratch)?;
        Ok(Payload::Out)
    }

    /// Answers with an entry of `dir` that has just been made.
    fn reply_with_new(
        &self,
        dir: &Node,
        name: &CStr,
        begin: &Beginning,
        scratch: &mut Scratch<'_>,
    ) -> Outcome {
        let (fd, mut stat) = find(dir, name)?;
        if begin.has_acl() {
            self.finish(begin, &fd)
                .inspect_err(|_| undo(dir, name, kind(&stat)))?;
            stat = look(&fd)?;
        }
        self.add_entry(dir, name, fd, &stat, scratch)?;
        Ok(Payload::Out)
    }

    /// mknod(2): what it made is still without its ACL.
    fn make_node(
        &self,
        dir: &Node,
        name: &CStr,
        (mode, umask): (u32, u32),
        number: u32,
        caller: impl Fn() -> Result<Caller, Errno>,
    ) -> Result<Beginning, Errno> {
        let kind = FileType::from_raw_mode(mode);
        if let Some(device) = Device::asked(mode, number) {
            // The host has a regular file for it.
            let begin = beginning(dir, FileType::RegularFile, mode & 0o7777, umask);
            let device = Device {
                mode: begin.mode,
                ..device
            };
            self.make_device(dir, name, device, caller)?;
            return Ok(begin);
        }
        match kind {
            FileType::RegularFile | FileType::Fifo | FileType::Socket => {}
            // An overlay's whiteout, which is not really a device.
            FileType::CharacterDevice => {}
            _ => return Err(Errno::PERM),
        }
        let begin = beginning(dir, kind, mode & 0o7777, umask);
        let made = caller()?;
        rustix::fs::mknodat(&dir.fd, name, kind, begin.first_mode(), 0)?;
        drop(made);
        Ok(begin)
    }

    /// Looks a file of `dir` up for the guest, and puts its entry into the answer.
    fn add_entry(
        &self,
        dir: &Node,
        name: &CStr,
        fd: OwnedFd,
        stat: &Statx,
        scratch: &mut Scratch<'_>,
    ) -> Result<(u64, Arc<Node>), Errno> {
        let kind = kind(stat);
        let origin = if dir.same_mount(stat) {
            dir.origin
        } else {
            origin(rustix::fs::fstatfs(&fd)?.f_type)
        };
        let added = self.add_node(fd, stat, kind, origin, dir.place_of(name));
        let (id, node) = added.inspect_err(|_| self.metrics.limited.add(1))?;
        reply::entry(&mut Writer(&mut scratch.out), id, node.ino(stat), stat);
        Ok((id, node))
    }

    /// Tells the guest of a file, by whatever mount it was reached before.
    fn add_node(
        &self,
        fd: OwnedFd,
        stat: &Statx,
        kind: FileType,
        origin: Origin,
        place: Place,
    ) -> Result<(u64, Arc<Node>), Errno> {
        let made = self.nodes().make(fd, stat, kind, origin, place);
        let mut added = self.nodes().add(&made)?;
        for _ in 0..MEETINGS {
            let leading = match added {
                Added::Known(id, node) => return Ok((id, node)),
                Added::Met(leading) => leading,
            };
            // Not under the lock: a network file system may be slow to answer.
            let beside = made.beside(&leading)?;
            let (found, gone) = self.nodes().add_beside(&made, &leading, beside)?;
            drop(gone);
            added = found;
        }
        match added {
            Added::Known(id, node) => Ok((id, node)),
            Added::Met(_) => Err(Errno::STALE),
        }
    }

    /// Makes the file, or opens the one that is there.
    fn create(
        &self,
        dir: &Node,
        name: &CStr,
        flags: u32,
        begin: &Beginning,
        kill: bool,
        made: Caller,
    ) -> Result<(OwnedFd, Statx), Errno> {
        let exclusive = OFlags::from_bits_retain(flags).contains(OFlags::EXCL);
        // As in `open_for_guest`; a file that is new is not append-only.
        let flags = open_flags(flags)? - OFlags::APPEND;
        // Always exclusive: so a symbolic link is never followed, whoever put it there.
        let fresh = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOCTTY;
        match rustix::fs::openat(&dir.fd, name, flags | fresh, begin.first_mode()) {
            Err(Errno::EXIST) if !exclusive => {}
            Err(error) => return Err(error),
            Ok(fd) => {
                drop(made);
                self.finish(begin, &fd)
                    .inspect_err(|_| undo(dir, name, FileType::RegularFile))?;
                let stat = stat(&fd)?;
                return Ok((fd, stat));
            }
        }
        drop(made);
        // Somebody else made it since the guest looked.
        let (path, found) = find(dir, name)?;
        if kind(&found) != FileType::RegularFile || dir.origin == Origin::Process {
            // The guest looks again, and sees what it is.
            return Err(Errno::STALE);
        }
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
        let fd = rustix::fs::openat(&self.descriptors, &*name_of(&path)?, flags, Mode::empty())?;
        if kill {
            strip_privileges(&fd)?;
        }
        let stat = stat(&fd)?;
        Ok((fd, stat))
    }

    /// Answers with a file that is open: its entry and its handle.
    fn reply_with_open_entry(
        &self,
        dir: &Node,
        name: &CStr,
        fd: OwnedFd,
        stat: &Statx,
        flags: u32,
        scratch: &mut Scratch<'_>,
    ) -> Outcome {
        // The very file that is open, whatever has become of its name.
        let path = OFlags::PATH | OFlags::CLOEXEC;
        let path = rustix::fs::openat(
            &self.descriptors,
            &*name_of(fd.as_fd())?,
            path,
            Mode::empty(),
        )?;
        let (id, node) = self.add_entry(dir, name, path, stat, scratch)?;
        let writable = flags & OFlags::ACCMODE.bits() != OFlags::RDONLY.bits();
        let how = how_opened(&node, writable, stat.stx_size);
        let handle = self.handles().add(Handle {
            fd,
            writable,
            origin: node.origin,
            position: None,
            device: node.device,
        });
        let handle = match handle {
            Ok(handle) => handle,
            Err(error) => {
                self.metrics.limited.add(1);
                let gone = self.nodes().forget(id, 1);
                drop(gone);
                return Err(error);
            }
        };
        reply::open(&mut Writer(&mut scratch.out), handle, how);
        Ok(Payload::Out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_file_systems_are_known_by_their_numbers() {
        for (path, expected) in [
            ("/proc", Origin::Process),
            ("/sys", Origin::Kernel),
            ("/", Origin::Stored),
        ] {
            let magic = rustix::fs::statfs(path).unwrap().f_type;
            assert_eq!(origin(magic), expected, "{path}");
        }
        // Sign-extended or not.
        assert_eq!(origin(0xf97c_ff8c), Origin::Kernel);
        assert_eq!(origin(-0x0683_0074), Origin::Kernel);
    }
}
