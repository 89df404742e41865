//! Anonymous volumes: for every path in `Volumes` of an image's config a directory of the container's
//! own on the pod's scratch disk, which begins with what the image has there. Not on overlayfs, so
//! that the container can have an overlay in it. It goes with the container's scratch directory.
//! Blocks.
//!
//! Not here: how a tree is copied ([`super::tree`]), and which paths there are, which the daemon says.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

use super::error::{AnonymousError, VolumeError};
use super::tree::{self, Limits};
use crate::userns::{IdMap, outside};

/// A rename anywhere on the machine makes the kernel give up a path with `..` (openat2(2), EAGAIN).
const ATTEMPTS: u32 = 100;

/// Makes the directory of the volume at `destination` of the container whose mounted root file system
/// is `root`, at `place`, which is new. If the image has a directory there, its content, owner and
/// mode are copied, owners as they are seen in `root`; else it is empty, and belongs to root: of the
/// pod's user namespace, if there is a `map`.
///
/// # Errors
/// If the image has something else there, or the scratch disk is full. What was made of the volume
/// stays where it is, for the container's scratch directory to be removed with.
pub fn make(
    root: &Path,
    destination: &Path,
    place: PathBuf,
    map: Option<&IdMap>,
) -> Result<PathBuf, VolumeError> {
    let source = find(root, destination)?;
    let copy = new_directory(&place)?;
    let Some(source) = source else {
        let (uid, gid) = outside(map, 0, 0);
        let steps = || -> Result<(), Errno> {
            rustix::fs::fchown(&copy, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
            rustix::fs::fchmod(&copy, Mode::from_raw_mode(0o755))
        };
        steps().map_err(file("setting the owner and the mode of", &place))?;
        return Ok(place);
    };
    // Beside it, so that the volume is never seen with it.
    let mut beside = place.clone().into_os_string();
    beside.push("-links");
    let beside = PathBuf::from(beside);
    let links = new_directory(&beside)?;
    tree::copy(source, copy, links.as_fd(), Limits::default()).map_err(|error| {
        let destination = destination.to_owned();
        if error.is_full() {
            AnonymousError::Full { destination, error }
        } else {
            AnonymousError::Copy { destination, error }
        }
    })?;
    // Files only.
    std::fs::remove_dir_all(&beside).map_err(file("removing", &beside))?;
    Ok(place)
}

/// The image's directory, found as the container would find it: no link leads out of its root.
fn find(root: &Path, destination: &Path) -> Result<Option<OwnedFd>, VolumeError> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let base = rustix::fs::openat(CWD, root, flags | OFlags::PATH, Mode::empty())
        .map_err(file("opening the container's root", root))?;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let open = || rustix::fs::openat2(&base, destination, flags, Mode::empty(), inside);
    let mut found = open();
    for _ in 1..ATTEMPTS {
        if !matches!(found, Err(Errno::AGAIN)) {
            break;
        }
        found = open();
    }
    let destination = destination.to_owned();
    match found {
        Ok(found) => {
            let same = || -> Result<bool, Errno> {
                let (one, other) = (rustix::fs::fstat(&found)?, rustix::fs::fstat(&base)?);
                Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
            };
            if same().map_err(file("looking at the container's root", root))? {
                return Err(VolumeError::Invalid {
                    field: "volumes.destination",
                    value: destination.display().to_string(),
                    allowed: "a volume of the image is a directory below its root, not the root",
                });
            }
            Ok(Some(found))
        }
        Err(Errno::NOENT) => Ok(None),
        Err(Errno::NOTDIR) => Err(AnonymousError::NoDirectory { destination }.into()),
        Err(error) => Err(AnonymousError::Resolve { destination, error }.into()),
    }
}

/// Creates a directory that only the agent can look into, and opens it.
fn new_directory(path: &Path) -> Result<OwnedFd, VolumeError> {
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(path)
        .map_err(file("making", path))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(file("opening", path))
}

fn file<E: Into<io::Error>>(what: &'static str, path: &Path) -> impl Fn(E) -> VolumeError {
    let path = path.to_owned();
    move |error| VolumeError::File {
        what,
        path: path.clone(),
        error: error.into(),
    }
}

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
pub(crate) mod tests;
