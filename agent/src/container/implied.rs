//! Directories that a layer holds without an entry of their own. The layer's EROFS file has to give
//! them some mode and owner (0755, root), and overlayfs shows those of the topmost layer; unpacked
//! on top of each other, the layers would have left the directory as the highest entry below has
//! it. Here the container's root gets that. Paths come from the image: nothing is followed out of
//! a layer or of the root.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

use super::rootfs::RootfsError;
use crate::userns::{IdMap, outside};

/// What the EROFS files give such directories (mode, user, group).
const DEFAULT: Attributes = (0o755, 0, 0);
/// overlayfs's mark of a directory that hides those below it.
const OPAQUE: &str = "trusted.overlay.opaque";

type Attributes = (u32, u32, u32);

/// What one layer has at a path.
enum Found {
    /// Nothing, and nothing that hides what is below.
    Nothing,
    /// Something else than a directory, or nothing and a directory above it hides what is below.
    End,
    /// A directory, and whether it or one above it hides what is below.
    Directory(Attributes, bool),
}

/// Gives the directories in `target`, where `layers` (lowest first) are stacked, the attributes
/// they have below. `implied` has the paths of each layer, by its place in `layers`; in `target` the
/// owners are those of a user namespace, if there is a `map`.
///
/// # Errors
/// If an attribute cannot be set.
pub fn adopt(
    target: &Path,
    layers: &[PathBuf],
    implied: &HashMap<usize, HashSet<Vec<u8>>>,
    map: Option<&IdMap>,
) -> Result<(), RootfsError> {
    let paths: HashSet<&Vec<u8>> = implied.values().flatten().collect();
    for path in paths {
        let attributes = below(layers, implied, path);
        if attributes != DEFAULT {
            let (mode, user, group) = attributes;
            let (user, group) = outside(map, user, group);
            set(target, path, (mode, user, group))?;
        }
    }
    Ok(())
}

/// The attributes of the highest entry.
fn below(
    layers: &[PathBuf],
    implied: &HashMap<usize, HashSet<Vec<u8>>>,
    path: &[u8],
) -> Attributes {
    for (index, layer) in layers.iter().enumerate().rev() {
        match look(layer, path) {
            Found::Nothing => {}
            Found::End => break,
            Found::Directory(attributes, hides) => {
                let is_implied = implied
                    .get(&index)
                    .is_some_and(|paths| paths.contains(path));
                if !is_implied {
                    return attributes;
                }
                if hides {
                    break;
                }
            }
        }
    }
    DEFAULT
}

/// Walks down, because any directory on the way can be opaque.
fn look(layer: &Path, path: &[u8]) -> Found {
    let Ok(mut at) = open(CWD, layer, ResolveFlags::empty()) else {
        return Found::End;
    };
    let mut hides = false;
    for name in path.split(|byte| *byte == b'/') {
        at = match open(&at, Path::new(OsStr::from_bytes(name)), INSIDE) {
            Ok(next) => next,
            Err(Errno::NOENT) if hides => return Found::End,
            Err(Errno::NOENT) => return Found::Nothing,
            Err(_) => return Found::End,
        };
        let mut value = [0; 1];
        let opaque = rustix::fs::fgetxattr(&at, OPAQUE, &mut value);
        hides |= opaque.is_ok() && value == *b"y";
    }
    match rustix::fs::fstat(&at) {
        Ok(stat) => Found::Directory((stat.st_mode & 0o7777, stat.st_uid, stat.st_gid), hides),
        Err(_) => Found::End,
    }
}

const INSIDE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

fn open(
    directory: impl std::os::fd::AsFd,
    path: &Path,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat2(directory, path, flags, Mode::empty(), resolve)
}

fn set(target: &Path, path: &[u8], (mode, user, group): Attributes) -> Result<(), RootfsError> {
    let relative = Path::new(OsStr::from_bytes(path));
    let failed = |error: Errno| RootfsError::Make {
        path: target.join(relative),
        error: error.into(),
    };
    let root = open(CWD, target, ResolveFlags::empty()).map_err(failed)?;
    let directory = match open(&root, relative, INSIDE) {
        Ok(directory) => directory,
        // A higher layer has removed it, or has something else there.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    // The owner first: a change of it clears the set-id bits.
    let owner = (Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
    rustix::fs::fchown(&directory, owner.0, owner.1).map_err(failed)?;
    rustix::fs::fchmod(&directory, Mode::from_raw_mode(mode)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    /// Plain directories stand in for layers and for the stack of them.
    struct Stack(
        tempfile::TempDir,
        Vec<PathBuf>,
        HashMap<usize, HashSet<Vec<u8>>>,
    );

    impl Stack {
        fn new(layers: usize) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let layers = (0..layers).map(|n| dir.path().join(n.to_string()));
            let layers: Vec<_> = layers.collect();
            for layer in &layers {
                fs::create_dir(layer).unwrap();
            }
            fs::create_dir(dir.path().join("root")).unwrap();
            Self(dir, layers, HashMap::new())
        }

        fn dir(&mut self, layer: usize, path: &str, mode: Option<u32>) {
            let at = self.1[layer].join(path);
            fs::create_dir_all(&at).unwrap();
            fs::create_dir_all(self.0.path().join("root").join(path)).unwrap();
            match mode {
                Some(mode) => fs::set_permissions(&at, fs::Permissions::from_mode(mode)).unwrap(),
                None => {
                    self.2.entry(layer).or_default().insert(path.into());
                }
            }
        }

        fn mode(&self, path: &str) -> u32 {
            adopt(&self.0.path().join("root"), &self.1, &self.2, None).unwrap();
            let meta = fs::symlink_metadata(self.0.path().join("root").join(path)).unwrap();
            meta.mode() & 0o7777
        }
    }

    /// Owners can be set by root alone; what is read is then the tester's own.
    fn is_root() -> bool {
        let root = rustix::process::geteuid().is_root();
        if !root {
            println!("skipped: needs root");
        }
        root
    }

    #[test]
    fn an_implied_directory_takes_the_attributes_of_the_highest_entry_below() {
        if !is_root() {
            return;
        }
        let mut stack = Stack::new(4);
        stack.dir(0, "tmp", Some(0o1777));
        stack.dir(1, "tmp", None);
        stack.dir(3, "tmp", None);
        assert_eq!(stack.mode("tmp"), 0o1777);
        stack.dir(2, "tmp", Some(0o700));
        assert_eq!(stack.mode("tmp"), 0o700);
    }

    #[test]
    fn directories_with_an_entry_above_or_none_below_stay_as_they_are() {
        if !is_root() {
            return;
        }
        let mut stack = Stack::new(3);
        stack.dir(0, "a", Some(0o700));
        stack.dir(1, "a", None);
        stack.dir(2, "a", Some(0o755));
        stack.dir(1, "new/deep", None);
        let before = stack.mode("new/deep");
        assert_eq!(stack.mode("a"), 0o755);
        assert_eq!(stack.mode("new/deep"), before);
    }

    #[test]
    fn links_in_layers_are_not_followed() {
        if !is_root() {
            return;
        }
        let mut stack = Stack::new(2);
        stack.dir(0, "d", Some(0o1777));
        stack.dir(1, "d", None);
        let outside = stack.0.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::set_permissions(&outside, fs::Permissions::from_mode(0o700)).unwrap();
        let inside = stack.0.path().join("root/d");
        fs::remove_dir(&inside).unwrap();
        symlink(&outside, &inside).unwrap();
        stack.mode("d");
        assert_eq!(fs::metadata(&outside).unwrap().mode() & 0o7777, 0o700);
        // A link in a layer below ends the search.
        let mut stack = Stack::new(2);
        stack.dir(1, "d", None);
        symlink(&outside, stack.1[0].join("d")).unwrap();
        let before = stack.mode("d");
        assert_ne!(before, 0o700);
        for hostile in ["../outside", "/etc", "d/../../outside"] {
            let paths = HashSet::from([hostile.as_bytes().to_vec()]);
            assert_eq!(
                below(&stack.1, &HashMap::from([(1, paths)]), hostile.as_bytes()),
                DEFAULT
            );
        }
    }
}
