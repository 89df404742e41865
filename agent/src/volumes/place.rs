//! Places in the guest's own tree: directories and files to mount on, device nodes, and parts of
//! volumes that are mounted there so that they have a path that no container can change. Blocks.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use bulkhead_proto::agent::{HostVolume, Ownership, Propagation};
use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, openat2};
use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, UnmountFlags, mount_change, move_mount, unmount,
};

use super::error::VolumeError;
use crate::host;
use crate::launcher::root::detached;
use crate::names::is_name;
use crate::paths::Paths;
use crate::userns;

/// Refuses what is not a name; it becomes part of paths.
///
/// # Errors
/// [`VolumeError::Invalid`].
pub fn check_name(field: &'static str, name: &str) -> Result<(), VolumeError> {
    if is_name(name, 64) {
        return Ok(());
    }
    Err(VolumeError::Invalid {
        field,
        value: name.chars().take(100).collect(),
        allowed: "1 to 64 characters of A-Z a-z 0-9 . _ -",
    })
}

/// Makes a directory and those above it.
///
/// # Errors
/// If the kernel refuses.
pub fn make_directory(path: &Path) -> Result<(), VolumeError> {
    fs::create_dir_all(path).map_err(|error| VolumeError::File {
        what: "making",
        path: path.to_owned(),
        error,
    })
}

/// A new place to mount on, with the directories above it.
fn make(place: &Path, directory: bool) -> io::Result<()> {
    if let Some(parent) = place.parent() {
        fs::create_dir_all(parent)?;
    }
    if directory {
        fs::create_dir(place)
    } else {
        fs::File::create_new(place).map(drop)
    }
}

/// Opens for reading.
///
/// # Errors
/// If the kernel refuses.
pub fn open(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// Mounts an open file or directory at a place made for it.
///
/// # Errors
/// If the kernel refuses.
pub fn mount(source: impl AsFd, place: &Path) -> Result<(), VolumeError> {
    let steps = || -> io::Result<()> {
        let mode = rustix::fs::fstat(&source)?.st_mode;
        make(place, FileType::from_raw_mode(mode) == FileType::Directory)?;
        let tree = detached::clone(&source, false)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        Ok(move_mount(&tree, "", CWD, place, flags)?)
    };
    steps().map_err(|error| VolumeError::File {
        what: "mounting at",
        path: place.to_owned(),
        error,
    })
}

/// A volume of the host for a pod on it: where it is, if the host's mounts are to follow (the pod's
/// own copies of them do), else a copy of its mounts that follows nothing, or one of the host's own,
/// which gives and takes.
///
/// # Errors
/// If the kernel refuses.
pub fn of_host(volume: &HostVolume, place: PathBuf) -> Result<PathBuf, VolumeError> {
    let source = PathBuf::from(&volume.path);
    if volume.propagation() == Propagation::FromHost {
        return Ok(source);
    }
    // A container that writes a directory above could turn a part of the path into a link after the
    // daemon has looked at it. What is opened here is what is mounted.
    let clone = || {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let plain = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let source = openat2(CWD, &source, flags, Mode::empty(), plain)?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&source)?.st_mode);
        Ok((detached::clone(&source, true)?, kind))
    };
    let steps = || -> io::Result<()> {
        let both = volume.propagation() == Propagation::Both;
        let (tree, kind) = if both {
            host::among_hosts_mounts(clone)?
        } else {
            clone()?
        };
        make(&place, kind == FileType::Directory)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&tree, "", CWD, &place, flags)?;
        if !both {
            let alone = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            mount_change(&place, alone)?;
        }
        Ok(())
    };
    steps().map_err(|error| VolumeError::File {
        what: "copying the mounts of",
        path: source.clone(),
        error,
    })?;
    Ok(place)
}

/// Mounts what is at `source` at a place made for it, its owners seen through a user namespace.
///
/// # Errors
/// If the kernel refuses: EINVAL for a file system that cannot do this.
pub fn mount_mapped(
    source: PathBuf,
    place: PathBuf,
    namespace: &Path,
) -> Result<PathBuf, VolumeError> {
    let steps = || -> io::Result<()> {
        make(&place, fs::metadata(&source)?.is_dir())?;
        let namespace = open(namespace)?;
        Ok(userns::mount_mapped(&source, &place, &namespace)?)
    };
    steps().map_err(|error| VolumeError::File {
        what: "mapping the owners for the pod's user namespace of",
        path: source.clone(),
        error,
    })?;
    Ok(place)
}

/// Makes a block device node.
///
/// # Errors
/// If the kernel refuses.
pub fn make_node(
    path: &Path,
    (major, minor): (u32, u32),
    ownership: Ownership,
) -> Result<(), VolumeError> {
    if let Some(parent) = path.parent() {
        make_directory(parent)?;
    }
    let mode = Mode::from_raw_mode(ownership.mode & 0o7777);
    let steps = || -> Result<(), Errno> {
        let device = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(CWD, path, FileType::BlockDevice, mode, device)?;
        // Independent of the umask.
        rustix::fs::chmod(path, mode)?;
        let (uid, gid) = (Uid::from_raw(ownership.uid), Gid::from_raw(ownership.gid));
        rustix::fs::chown(path, Some(uid), Some(gid))
    };
    steps().map_err(|error| VolumeError::File {
        what: "making the device node",
        path: path.to_owned(),
        error: error.into(),
    })
}

/// Removes what was made for one container. Mounts are detached, not entered.
///
/// # Errors
/// For the first that cannot be removed; the rest is removed.
pub fn clear(paths: &Paths, id: &str) -> Result<(), VolumeError> {
    let mut first = None;
    for directory in [paths.placed(id), paths.images(id)] {
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries.flatten() {
            if let Err(error) = take_down(&entry.path()) {
                first.get_or_insert(error);
            }
        }
        if let Err(error) = gone(fs::remove_dir(&directory)) {
            first.get_or_insert(VolumeError::File {
                what: "removing",
                path: directory,
                error,
            });
        }
    }
    let nodes = paths.devices();
    for entry in fs::read_dir(&nodes).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.rsplit_once('-').is_some_and(|(of, _)| of == id)
            && let Err(error) = gone(fs::remove_file(entry.path()))
        {
            first.get_or_insert(VolumeError::File {
                what: "removing",
                path: entry.path(),
                error,
            });
        }
    }
    first.map_or(Ok(()), Err)
}

fn take_down(path: &Path) -> Result<(), VolumeError> {
    let steps = || -> io::Result<()> {
        // For one of the host's own mounts: what is mounted below it must not be unmounted on the
        // host.
        let alone = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        match mount_change(path, alone) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        // Neither call can remove anything that is still mounted.
        if fs::symlink_metadata(path)?.is_dir() {
            fs::remove_dir(path)
        } else {
            fs::remove_file(path)
        }
    };
    gone(steps()).map_err(|error| VolumeError::File {
        what: "taking down",
        path: path.to_owned(),
        error,
    })
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_a_link_leads_to_is_not_mounted() {
        let dir = tempfile::tempdir().unwrap();
        // Wherever temporary files are, the way there is plain.
        let base = dir.path().canonicalize().unwrap();
        let real = base.join("real");
        fs::create_dir_all(real.join("x")).unwrap();
        std::os::unix::fs::symlink(&real, base.join("turned")).unwrap();
        std::os::unix::fs::symlink(real.join("x"), base.join("last")).unwrap();
        let refused = |path: &str| {
            let volume = HostVolume {
                path: base.join(path).display().to_string(),
                propagation: Propagation::None.into(),
            };
            let place = base.join("place");
            let error = of_host(&volume, place.clone()).err();
            let error = error.map(|error| match error {
                VolumeError::File { error, .. } => error.raw_os_error(),
                other => panic!("{other}"),
            });
            let _unmounted = unmount(&place, UnmountFlags::DETACH);
            let _gone = fs::remove_dir(&place);
            error.flatten()
        };
        let link = Some(Errno::LOOP.raw_os_error());
        assert_eq!(refused("turned/x"), link);
        assert_eq!(refused("last"), link);
        // Without the right to mount this one is refused, too, but not for a link.
        assert_ne!(refused("real/x"), link);
    }
}
