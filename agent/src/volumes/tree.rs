//! Copying a directory tree of an image to another file system. What is in it is not trusted: it is
//! walked by descriptors, no link is followed, no mount is entered, and neither its depth nor its
//! size costs more than a bounded number of descriptors and of bytes.
//!
//! Not here: which directory is copied and where to ([`super::anonymous`]).

mod content;
pub mod error;

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid};
use rustix::io::Errno;

use self::content::{Buffers, times};
pub use self::error::TreeError;
use self::error::{Failure, step};

/// Of a path in an error.
const LONGEST_PATH: usize = 1024;

/// How much is copied at most.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Entries of all directories.
    pub entries: u64,
    /// Directories within each other.
    pub depth: usize,
    /// Bytes of names of directories that are still to be entered.
    pub names: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 1 << 20,
            depth: 16384,
            names: 16 << 20,
        }
    }
}

/// A directory on the way down.
struct Level {
    name: CString,
    stat: Stat,
    /// The copy's place.
    copy: Id,
    /// Directories in it that are still to be copied.
    pending: Vec<CString>,
}

/// A device and an inode on it.
type Id = (u64, u64);

struct Walk<'a> {
    limits: Limits,
    /// The directory that is copied now, and its copy.
    source: OwnedFd,
    copy: OwnedFd,
    levels: Vec<Level>,
    entries: u64,
    names: usize,
    /// Where every file with more than one name has one more, by which the next is made.
    links: BorrowedFd<'a>,
    linked: HashMap<Id, CString>,
    buffers: Buffers,
}

/// Copies what is in `source`, and what that directory is itself (owner, mode, times, attributes), to
/// `copy`, which is empty and out of others' reach. `links` is an empty directory on the same file
/// system, whose entries are of no use afterwards.
///
/// # Errors
/// The first thing that cannot be copied.
pub fn copy(
    source: OwnedFd,
    copy: OwnedFd,
    links: BorrowedFd<'_>,
    limits: Limits,
) -> Result<(), TreeError> {
    let mut walk = Walk {
        limits,
        source,
        copy,
        levels: Vec::new(),
        entries: 0,
        names: 0,
        links,
        linked: HashMap::new(),
        buffers: Buffers::new(),
    };
    walk.enter(c"".to_owned())?;
    while let Some(level) = walk.levels.last_mut() {
        match level.pending.pop() {
            Some(name) => walk.descend(name)?,
            None => walk.leave()?,
        }
    }
    Ok(())
}

impl Walk<'_> {
    /// Copies all but the directories of where the walk has come to.
    fn enter(&mut self, name: CString) -> Result<(), TreeError> {
        let stat = stat(&self.source).map_err(|failure| self.at(&name, failure))?;
        let copy = stat_id(&self.copy).map_err(|failure| self.at(&name, failure))?;
        self.levels.push(Level {
            name,
            stat,
            copy,
            pending: Vec::new(),
        });
        let entries = Dir::read_from(&self.source)
            .map_err(step("reading the directory"))
            .map_err(|failure| self.at(c"", failure))?;
        for entry in entries {
            let entry = entry
                .map_err(step("reading the directory"))
                .map_err(|failure| self.at(c"", failure))?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            self.entries += 1;
            if self.entries > self.limits.entries {
                return Err(TreeError::TooLarge {
                    what: "files",
                    allowed: self.limits.entries,
                });
            }
            let directory = self.entry(name).map_err(|failure| self.at(name, failure))?;
            if directory {
                self.remember(name)?;
            }
        }
        Ok(())
    }

    /// Remembers a directory for later.
    fn remember(&mut self, name: &CStr) -> Result<(), TreeError> {
        self.names += name.count_bytes();
        if self.names > self.limits.names {
            return Err(TreeError::TooLarge {
                what: "bytes of directories' names beside each other",
                allowed: u64::try_from(self.limits.names).unwrap_or(u64::MAX),
            });
        }
        if let Some(level) = self.levels.last_mut() {
            level.pending.push(name.to_owned());
        }
        Ok(())
    }

    /// Copies an entry, unless it is a directory, which is the answer.
    fn entry(&mut self, name: &CStr) -> Result<bool, Failure> {
        let stat = rustix::fs::statat(&self.source, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(step("looking at"))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        match kind {
            FileType::Directory => return Ok(true),
            FileType::RegularFile => self.file(name)?,
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&self.source, name, Vec::new())
                    .map_err(step("reading the link"))?;
                rustix::fs::symlinkat(target.as_c_str(), &self.copy, name)
                    .map_err(step("making the link"))?;
                self.own(name, &stat)?;
            }
            // Docker and containerd copy them too. Who may open a device is the device filter's to say.
            FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice => {
                let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
                rustix::fs::mknodat(&self.copy, name, kind, mode, stat.st_rdev)
                    .map_err(step("making the node"))?;
                self.own(name, &stat)?;
                // For an access list, which it may have from its directory.
                let open = |directory| open_entry(directory, name, OFlags::PATH);
                let source = open(&self.source).map_err(step("opening"))?;
                let copy = open(&self.copy).map_err(step("opening the copy of"))?;
                self.buffers.extended(source.as_fd(), copy.as_fd())?;
                // Whatever the umask is; and an owner's change takes bits away.
                rustix::fs::chmodat(&self.copy, name, mode, AtFlags::empty())
                    .map_err(step("setting the mode of"))?;
            }
            FileType::Unknown => {
                return Err(step("finding out the type of")(Errno::INVAL));
            }
        }
        Ok(false)
    }

    /// The owner and the times of an entry that is not opened.
    fn own(&self, name: &CStr, stat: &Stat) -> Result<(), Failure> {
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(&self.copy, name, Some(uid), Some(gid), flags)
            .map_err(step("setting the owner of"))?;
        rustix::fs::utimensat(&self.copy, name, &times(stat), flags)
            .map_err(step("setting the times of"))
    }

    fn file(&mut self, name: &CStr) -> Result<(), Failure> {
        // NONBLOCK: opening a fifo must not block.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let source = open_entry(&self.source, name, flags).map_err(step("opening"))?;
        let stat = stat(&source)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(step("opening")(Errno::STALE));
        }
        if stat.st_nlink < 2 {
            let copy = create(self.copy.as_fd(), name)?;
            return self.buffers.fill(source, &stat, copy);
        }
        let linked = |walk: &Self, place: &CStr| {
            rustix::fs::linkat(walk.links, place, &walk.copy, name, AtFlags::empty())
        };
        if let Some(place) = self.linked.get(&id(&stat)) {
            match linked(self, place) {
                Ok(()) => return Ok(()),
                // As many as the file system can have: the next ones share another copy.
                Err(Errno::MLINK) => {}
                Err(error) => return Err(step("linking")(error)),
            }
        }
        let place = CString::new(self.entries.to_string()).unwrap_or_default();
        let copy = create(self.links, &place)?;
        self.buffers.fill(source, &stat, copy)?;
        linked(self, &place).map_err(step("linking"))?;
        self.linked.insert(id(&stat), place);
        Ok(())
    }

    fn descend(&mut self, name: CString) -> Result<(), TreeError> {
        self.names = self.names.saturating_sub(name.count_bytes());
        if self.levels.len() > self.limits.depth {
            return Err(TreeError::TooLarge {
                what: "directories within each other",
                allowed: u64::try_from(self.limits.depth).unwrap_or(u64::MAX),
            });
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let open = || -> Result<_, Failure> {
            let source = open_entry(&self.source, &name, flags).map_err(step("opening"))?;
            rustix::fs::mkdirat(&self.copy, &name, Mode::RWXU).map_err(step("making"))?;
            let copy = open_entry(&self.copy, &name, flags).map_err(step("opening the copy of"))?;
            Ok((source, copy))
        };
        (self.source, self.copy) = open().map_err(|failure| self.at(&name, failure))?;
        self.enter(name)
    }

    /// Gives the directory its attributes, now that nothing is written in it any more, and goes back
    /// to the one above.
    fn leave(&mut self) -> Result<(), TreeError> {
        let Some(level) = self.levels.last() else {
            return Ok(());
        };
        self.buffers
            .finish(self.source.as_fd(), &level.stat, self.copy.as_fd())
            .map_err(|failure| self.at(c"", failure))?;
        if self.levels.len() > 1 {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let up = |fd: &OwnedFd| rustix::fs::openat(fd, c"..", flags, Mode::empty());
            let both = || -> Result<_, Errno> { Ok((up(&self.source)?, up(&self.copy)?)) };
            (self.source, self.copy) = both()
                .map_err(step("going up from"))
                .map_err(|failure| self.at(c"", failure))?;
        }
        self.levels.pop();
        // If they were moved, the copy must not continue elsewhere.
        if let Some(level) = self.levels.last() {
            let ids = || Ok((stat_id(&self.source)?, stat_id(&self.copy)?));
            if ids().map_err(|failure| self.at(c"", failure))? != (id(&level.stat), level.copy) {
                let moved = step("going back to, which was moved:")(Errno::STALE);
                return Err(self.at(c"", moved));
            }
        }
        Ok(())
    }

    /// The error, with the path of an entry of the current directory, or of that itself.
    fn at(&self, name: &CStr, failure: Failure) -> TreeError {
        let names = self.levels.iter().map(|level| level.name.to_bytes());
        let mut path = names
            .chain([name.to_bytes()])
            .filter(|name| !name.is_empty())
            .collect::<Vec<_>>()
            .join(&b'/');
        if path.len() > LONGEST_PATH {
            path = [
                b"...".as_slice(),
                &path.split_off(path.len() - LONGEST_PATH),
            ]
            .concat();
        }
        TreeError::Step {
            step: failure.step,
            path: OsStr::from_bytes(&path).into(),
            error: failure.error,
        }
    }
}

fn open_entry(directory: &OwnedFd, name: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inside = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(directory, name, flags, Mode::empty(), inside)
}

fn create(directory: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Failure> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::openat(directory, name, flags, mode).map_err(step("making"))
}

fn stat(fd: &OwnedFd) -> Result<Stat, Failure> {
    rustix::fs::fstat(fd).map_err(step("looking at"))
}

fn stat_id(fd: &OwnedFd) -> Result<Id, Failure> {
    stat(fd).map(|stat| id(&stat))
}

fn id(stat: &Stat) -> Id {
    (stat.st_dev, stat.st_ino)
}
