//! Paths of an image in the container's root, by descriptor. The image is hostile, and so may be a
//! container that works in a shared volume at the same time: links lead nowhere but inside the
//! root (openat2(2), RESOLVE_IN_ROOT), magic links of procfs lead nowhere at all, and what is
//! missing on the way is made where a process in the container would make it.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Links on one way, as the kernel has it (path_resolution(7)).
const MAX_LINKS: usize = 40;
/// Steps on one way, links' included: a path is 4096 bytes at most.
const MAX_STEPS: usize = 8 * 1024;
/// How often a step is tried that somebody else undoes.
const MAX_RACES: usize = 16;

const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// What is made at a path where nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Make {
    /// A directory.
    Directory,
    /// An empty file.
    File,
}

/// Opens what is at a path.
///
/// # Errors
/// If the kernel refuses.
pub fn open(root: impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    openat2(root, path, flags, INSIDE)
}

/// Opens a directory to mount on that the image must not have turned into a link, nor one above it.
///
/// # Errors
/// If the kernel refuses; ELOOP for a link.
pub fn open_plain(root: impl AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    openat2(root, path, flags, INSIDE | ResolveFlags::NO_SYMLINKS)
}

fn openat2(
    root: impl AsFd,
    path: &Path,
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    for _ in 0..MAX_RACES {
        match rustix::fs::openat2(&root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // A rename on the way, which could have led outside (openat2(2)).
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// Opens what is at a path (O_PATH), making it and the directories above it where they are missing.
/// A link that leads to nothing is followed to where it leads in the root.
///
/// # Errors
/// If the kernel refuses: ENOTDIR if a file is in the way, EROFS, ENOSPC; ELOOP for too many links.
pub fn open_or_make(root: impl AsFd, path: &Path, make: Make) -> Result<OwnedFd, Errno> {
    // "/file/" is a file here, as in a pod's manifest; to the kernel it would be a directory.
    let path = &path.components().collect::<PathBuf>();
    match open(&root, path, OFlags::PATH) {
        Err(Errno::NOENT) => walk(root.as_fd(), path, make),
        other => other,
    }
}

/// One step after the other. `done` has no link in it, unless it is changed meanwhile: then a step
/// fails, or leads elsewhere inside the root.
fn walk(root: impl AsFd, path: &Path, make: Make) -> Result<OwnedFd, Errno> {
    let mut done = PathBuf::new();
    let mut ahead = VecDeque::new();
    prepend(&mut ahead, path);
    let (mut links, mut steps) = (0, 0);
    while let Some(name) = ahead.pop_front() {
        steps += 1;
        if steps > MAX_STEPS {
            return Err(Errno::NAMETOOLONG);
        }
        if name == ".." {
            done.pop();
            continue;
        }
        let last = ahead.is_empty();
        let next = done.join(&name);
        let found = step(
            &root,
            &done,
            &next,
            if last { make } else { Make::Directory },
        )?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode);
        if kind == FileType::Symlink {
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::LOOP);
            }
            let target = rustix::fs::readlinkat(&found, "", Vec::new())?;
            let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
            if target.is_absolute() {
                done = PathBuf::new();
            }
            prepend(&mut ahead, &target);
            continue;
        }
        if !last && kind != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        done = next;
    }
    open(root, &done, OFlags::PATH)
}

fn prepend(ahead: &mut VecDeque<OsString>, path: &Path) {
    for component in path.components().rev() {
        match component {
            Component::Normal(name) => ahead.push_front(name.to_owned()),
            Component::ParentDir => ahead.push_front("..".into()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
}

/// Opens one name below a directory, without following it, and makes it if it is missing.
fn step(root: impl AsFd, parent: &Path, name: &Path, make: Make) -> Result<OwnedFd, Errno> {
    for _ in 0..MAX_RACES {
        match open(&root, name, OFlags::PATH | OFlags::NOFOLLOW) {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        let parent = open(&root, parent, OFlags::PATH | OFlags::DIRECTORY)?;
        let name = name.file_name().ok_or(Errno::INVAL)?;
        let made = match make {
            Make::Directory => rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)),
            Make::File => rustix::fs::openat(
                &parent,
                name,
                OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::from_raw_mode(0o644),
            )
            .map(drop),
        };
        match made {
            // Opened in the next turn; somebody else may have made it.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Errno::AGAIN)
}

#[cfg(test)]
mod tests;
