//! What the host's files are to the guest where the host keeps it in attributes: modes, ACLs, devices.
//! What the attributes are called and what their values mean is in `escape`, `acl` and `special`.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Statx, XattrFlags};
use rustix::io::Errno;

use super::acl::Acl;
use super::caller::Caller;
use super::escape::{DEVICE, HAS_DEVICES, HOST_ACL_ACCESS, HOST_ACL_DEFAULT, HOST_CAPABILITY};
use super::nodes::{Node, Origin};
use super::server::{Server, name_of, stat};
use super::special::{self, Device};

/// The guest's kernel takes no ACL that is larger than a page.
const MAX_ACL: usize = 4096;

/// What a new file begins with.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Beginning {
    /// Set-id and sticky bits and permissions.
    pub(super) mode: u32,
    access: Option<Acl>,
    /// A directory's, for what will be in it.
    default: Option<Vec<u8>>,
}

impl Beginning {
    /// The mode it is made with: until its ACL is there nobody has what is the mask's.
    pub(super) fn first_mode(&self) -> Mode {
        let mode = match self.access {
            Some(_) => self.mode & !0o070,
            None => self.mode,
        };
        Mode::from_bits_retain(mode & 0o7777)
    }

    /// Whether there is something to do after it is made.
    pub(super) fn has_acl(&self) -> bool {
        self.access.is_some() || self.default.is_some()
    }
}

/// Whether the host lets a file of this type have attributes.
pub(super) fn has_attributes(kind: FileType) -> bool {
    matches!(kind, FileType::RegularFile | FileType::Directory)
}

fn read_acl(fd: impl AsFd, name: &CStr) -> Option<Vec<u8>> {
    let mut value = vec![0; MAX_ACL];
    let length = rustix::fs::getxattr(&*name_of(fd).ok()?, name, &mut value).ok()?;
    value.truncate(length);
    Some(value)
}

/// The device that a file stands for.
fn device(fd: impl AsFd, stat: &Statx) -> Option<Device> {
    if !special::is_candidate(stat) {
        return None;
    }
    let mut value = [0; special::MAX_VALUE];
    let length = rustix::fs::getxattr(&*name_of(fd).ok()?, DEVICE, &mut value).ok()?;
    Device::parse(value.get(..length)?)
}

/// All there is to know of the file behind a descriptor, as the guest knows it.
pub(super) fn look(fd: impl AsFd) -> Result<Statx, Errno> {
    let mut stat = stat(&fd)?;
    if let Some(device) = device(&fd, &stat) {
        device.show(&mut stat);
    }
    Ok(stat)
}

/// The type of a file as the guest knows it.
pub(super) fn kind(stat: &Statx) -> FileType {
    FileType::from_raw_mode(u32::from(stat.stx_mode))
}

pub(super) fn is_device(kind: FileType) -> bool {
    matches!(kind, FileType::CharacterDevice | FileType::BlockDevice)
}

/// Takes from an open file what a change of it by others must not leave: file capabilities. Only what
/// is executable is asked for them.
pub(super) fn strip_capability(fd: impl AsFd, mode: Mode) -> Result<(), Errno> {
    if !mode.intersects(Mode::XUSR | Mode::XGRP | Mode::XOTH) {
        return Ok(());
    }
    match rustix::fs::fgetxattr(&fd, HOST_CAPABILITY, &mut [0; 64]) {
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        _ => rustix::fs::fremovexattr(&fd, HOST_CAPABILITY),
    }
}

/// What a file made in `dir` begins with: less its maker's umask, or what the directory's default
/// ACL says instead.
pub(super) fn beginning(dir: &Node, kind: FileType, mode: u32, umask: u32) -> Beginning {
    let default = match dir.origin {
        Origin::Stored => read_acl(&dir.fd, HOST_ACL_DEFAULT),
        _ => None,
    };
    let parsed = default.as_deref().map(Acl::parse);
    let Some(Ok(acl)) = parsed else {
        return Beginning {
            mode: mode & !(umask & 0o777),
            access: None,
            default: None,
        };
    };
    let mut inherited = acl.inherit(mode);
    if !has_attributes(kind)
        && let Some(access) = inherited.access.take()
    {
        inherited.mode = access.mode_without();
    }
    Beginning {
        mode: mode & !0o777 | inherited.mode,
        access: inherited.access,
        default: default.filter(|_| kind == FileType::Directory),
    }
}

impl Server {
    /// Gives a new file its ACLs, and then the mode that goes with them.
    pub(super) fn finish(&self, begin: &Beginning, fd: impl AsFd) -> Result<(), Errno> {
        let name = name_of(&fd)?;
        let none = XattrFlags::empty();
        if let Some(default) = &begin.default {
            rustix::fs::setxattr(&*name, HOST_ACL_DEFAULT, default, none)?;
        }
        let Some(access) = &begin.access else {
            return Ok(());
        };
        rustix::fs::setxattr(&*name, HOST_ACL_ACCESS, &access.to_bytes(), none)?;
        let stat = stat(&fd)?;
        if device(&fd, &stat).is_some() {
            // Its mode is in its own attribute.
            return Ok(());
        }
        // The host's kernel may have added the directory's set-group-id bit.
        let mode = u32::from(stat.stx_mode) & 0o7000 | begin.mode & 0o777;
        let mode = Mode::from_bits_retain(mode);
        rustix::fs::chmodat(&self.descriptors, &*name, mode, AtFlags::empty())
    }

    /// Makes a file that stands for a device.
    pub(super) fn make_device(
        &self,
        dir: &Node,
        name: &CStr,
        device: Device,
        caller: impl Fn() -> Result<Caller, Errno>,
    ) -> Result<(), Errno> {
        mark_devices(dir);
        let mode = Mode::from_bits_retain(special::MODE);
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        // Without a name until it is whole.
        let made = caller()?;
        let unnamed = rustix::fs::openat(&dir.fd, c".", flags | OFlags::TMPFILE, mode);
        drop(made);
        match unnamed {
            Ok(fd) => {
                stand_for(&fd, device)?;
                let from = name_of(&fd)?;
                let follow = AtFlags::SYMLINK_FOLLOW;
                rustix::fs::linkat(&self.descriptors, &*from, &dir.fd, name, follow)
            }
            Err(Errno::OPNOTSUPP) => {
                let made = caller()?;
                let fresh = flags | OFlags::CREATE | OFlags::EXCL;
                let fd = rustix::fs::openat(&dir.fd, name, fresh, mode)?;
                drop(made);
                stand_for(&fd, device).inspect_err(|_| {
                    let _ = rustix::fs::unlinkat(&dir.fd, name, AtFlags::empty());
                })
            }
            Err(error) => Err(error),
        }
    }

    /// chmod(2): the mode, and the ACL with it.
    pub(super) fn change_mode(&self, node: &Node, mode: u32) -> Result<(), Errno> {
        self.set_mode(node, mode)?;
        if node.origin != Origin::Stored || matches!(node.kind, FileType::Symlink) {
            return Ok(());
        }
        let value = read_acl(&node.fd, HOST_ACL_ACCESS);
        if let Some(Ok(mut acl)) = value.as_deref().map(Acl::parse) {
            acl.change_mode(mode);
            let (name, value) = (name_of(&node.fd)?, acl.to_bytes());
            rustix::fs::setxattr(&*name, HOST_ACL_ACCESS, &value, XattrFlags::empty())?;
        }
        Ok(())
    }

    fn set_mode(&self, node: &Node, mode: u32) -> Result<(), Errno> {
        let name = name_of(&node.fd)?;
        if is_device(node.kind)
            && let Some(device) = device(&node.fd, &stat(&node.fd)?)
        {
            let mode = mode & 0o7777;
            let value = Device { mode, ..device }.to_value();
            return rustix::fs::setxattr(&*name, DEVICE, value.as_bytes(), XattrFlags::REPLACE);
        }
        let mode = Mode::from_bits_retain(mode & 0o7777);
        rustix::fs::chmodat(&self.descriptors, &*name, mode, AtFlags::empty())
    }

    /// Sets the access ACL, and the mode with it. One that the mode says whole is not kept.
    pub(super) fn set_access_acl(
        &self,
        node: &Node,
        value: &[u8],
        kill_sgid: bool,
    ) -> Result<(), Errno> {
        if node.kind == FileType::Symlink {
            return Err(Errno::OPNOTSUPP);
        }
        let acl = Acl::parse(value)?;
        let mut mode = u32::from(look(&node.fd)?.stx_mode) & 0o7000 | acl.mode();
        if kill_sgid {
            mode &= !libc::S_ISGID;
        }
        if acl.is_minimal() {
            remove_acl(node, HOST_ACL_ACCESS)?;
        } else {
            let name = name_of(&node.fd)?;
            rustix::fs::setxattr(&*name, HOST_ACL_ACCESS, value, XattrFlags::empty())?;
        }
        self.set_mode(node, mode)
    }
}

/// Makes a regular file be a device to guests. On a file system without attributes it is mknod(2)'s
/// own error.
fn stand_for(fd: &OwnedFd, device: Device) -> Result<(), Errno> {
    // An ACL of the host's may have taken something of it.
    rustix::fs::fchmod(fd, Mode::from_bits_retain(special::MODE))?;
    let value = device.to_value();
    match rustix::fs::fsetxattr(fd, DEVICE, value.as_bytes(), XattrFlags::CREATE) {
        Err(Errno::OPNOTSUPP) => Err(Errno::PERM),
        set => set,
    }
}

/// Sets a directory's default ACL.
pub(super) fn set_default_acl(node: &Node, value: &[u8]) -> Result<(), Errno> {
    if node.kind != FileType::Directory {
        return Err(Errno::ACCESS);
    }
    Acl::parse(value)?;
    let name = name_of(&node.fd)?;
    rustix::fs::setxattr(&*name, HOST_ACL_DEFAULT, value, XattrFlags::empty())
}

/// Removes an ACL. That there is none is no error, as on the host's own file systems.
pub(super) fn remove_acl(node: &Node, name: &CStr) -> Result<(), Errno> {
    match rustix::fs::removexattr(&*name_of(&node.fd)?, name) {
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        // A file that can have none.
        Err(Errno::PERM) if !has_attributes(kind(&stat(&node.fd)?)) => Ok(()),
        removed => removed,
    }
}

/// A change of owner takes file capabilities away.
pub(super) fn drop_capability(node: &Node) -> Result<(), Errno> {
    if node.kind != FileType::RegularFile || node.origin != Origin::Stored {
        return Ok(());
    }
    match rustix::fs::removexattr(&*name_of(&node.fd)?, HOST_CAPABILITY) {
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        removed => removed,
    }
}

/// Notes that a directory has devices among its entries: when it is listed each is looked at.
/// Without the note a listing alone is wrong about their type.
pub(super) fn mark_devices(dir: &Node) {
    if let Ok(name) = name_of(&dir.fd) {
        let _ = rustix::fs::setxattr(&*name, HAS_DEVICES, b"1", XattrFlags::empty());
    }
}

/// Whether a directory may have devices among its entries.
pub(super) fn may_have_devices(dir: impl AsFd) -> bool {
    let name = name_of(&dir);
    name.is_ok_and(|name| rustix::fs::getxattr(&*name, HAS_DEVICES, &mut [0; 8]).is_ok())
}

/// The type of a directory's entry that the host lists as a regular file.
pub(super) fn kind_of_entry(dir: impl AsFd, name: &CStr) -> FileType {
    let mask = rustix::fs::StatxFlags::BASIC_STATS;
    let listed = rustix::fs::statx(&dir, name, AtFlags::SYMLINK_NOFOLLOW, mask);
    if !listed.is_ok_and(|stat| special::is_candidate(&stat)) {
        return FileType::RegularFile;
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(&dir, name, flags, Mode::empty());
    opened
        .and_then(look)
        .map_or(FileType::RegularFile, |stat| kind(&stat))
}
