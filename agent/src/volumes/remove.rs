//! Removing a directory tree that a container has written: however deep it is, and whatever is in
//! it. `std::fs::remove_dir_all` holds a descriptor for each level, so that a container that makes
//! a few thousand directories within each other would leave them for ever. Blocks.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// A directory that is being emptied.
struct Level {
    name: CString,
    id: (u64, u64),
    /// Directories in it.
    pending: Vec<CString>,
}

/// Removes `path` and all that is below it; links are removed, not followed, and mounts not
/// entered. A path that does not exist is not an error.
///
/// # Errors
/// The first thing that would not go.
pub fn tree(path: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut here = match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => return std::fs::remove_file(path),
        Err(error) => return Err(error.into()),
    };
    let mut levels = vec![empty(&here, c"".to_owned())?];
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.pending.pop() {
            let inside = ResolveFlags::BENEATH
                | ResolveFlags::NO_SYMLINKS
                | ResolveFlags::NO_MAGICLINKS
                | ResolveFlags::NO_XDEV;
            here = rustix::fs::openat2(&here, name.as_c_str(), flags, Mode::empty(), inside)?;
            levels.push(empty(&here, name)?);
            continue;
        }
        let name = std::mem::take(&mut level.name);
        levels.pop();
        let Some(above) = levels.last() else {
            break;
        };
        let up = rustix::fs::openat(&here, c"..", flags, Mode::empty())?;
        // If it was moved, the removal must not continue elsewhere.
        if id(&up)? != above.id {
            return Err(Errno::STALE.into());
        }
        rustix::fs::unlinkat(&up, name.as_c_str(), AtFlags::REMOVEDIR)?;
        here = up;
    }
    std::fs::remove_dir(path)
}

/// Removes everything but directories, and remembers those.
fn empty(directory: &OwnedFd, name: CString) -> io::Result<Level> {
    let mut pending = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        if entry.file_type() == FileType::Directory || !unlink(directory, name)? {
            pending.push(name.to_owned());
        }
    }
    Ok(Level {
        name,
        id: id(directory)?,
        pending,
    })
}

/// Returns whether it was something else than a directory.
fn unlink(directory: &OwnedFd, name: &CStr) -> io::Result<bool> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::ISDIR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn id(directory: &OwnedFd) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(directory)?;
    Ok((stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_tree_deeper_than_path_max_and_open_files_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("tree");
        fs::create_dir(&root).unwrap();
        crate::volumes::anonymous::tests::dig(&root, 5000);
        fs::write(root.join("file"), "").unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "").unwrap();
        symlink(&outside, root.join("link")).unwrap();
        tree(&root).unwrap();
        assert!(!root.exists());
        assert!(outside.join("kept").exists());
        tree(&root).unwrap();
        // A link in its place is removed, not what it leads to.
        symlink(&outside, &root).unwrap();
        tree(&root).unwrap();
        assert!(root.symlink_metadata().is_err() && outside.join("kept").exists());
    }
}
