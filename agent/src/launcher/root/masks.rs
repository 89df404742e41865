//! Paths of a container's root that are hidden or read-only, mostly of procfs and sysfs
//! (LinuxContainerSecurityContext masked_paths, readonly_paths).

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::error::RootError;
use super::{detached, resolve};
use crate::mount_attr::{self, Change};

/// The device number of /dev/null.
const NULL: (u32, u32) = (1, 3);

fn failed(what: &'static str, path: &str) -> impl FnOnce(Errno) -> RootError {
    move |error| RootError::Path {
        what,
        path: path.into(),
        error,
    }
}

/// Opens what is at a path; `None` if there is nothing to hide.
fn target(root: &OwnedFd, path: &str, flags: OFlags) -> Result<Option<OwnedFd>, Errno> {
    match resolve::open(root, Path::new(path), OFlags::PATH | flags) {
        Ok(target) => Ok(Some(target)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes paths read-only, with what is mounted below.
///
/// # Errors
/// If the kernel refuses.
pub fn read_only(root: &OwnedFd, paths: &[String]) -> Result<(), RootError> {
    for path in paths {
        let steps = || -> Result<(), Errno> {
            let Some(target) = target(root, path, OFlags::empty())? else {
                return Ok(());
            };
            let tree = detached::clone(&target, true)?;
            let change = Change {
                set: mount_attr::RDONLY
                    | mount_attr::NOSUID
                    | mount_attr::NODEV
                    | mount_attr::NOEXEC,
                recursive: true,
                ..Change::default()
            };
            mount_attr::change(&tree, change)?;
            detached::attach(&tree, &target)
        };
        steps().map_err(failed("making read-only", path))?;
    }
    Ok(())
}

/// Hides paths: a directory under an empty one, everything else under a null device, `own` being
/// that of the container's own /dev. In a user namespace it is the agent's, whose mode and owner
/// cannot be changed from inside.
///
/// # Errors
/// If the kernel refuses.
pub fn hide(root: &OwnedFd, paths: &[String], own: Option<&OwnedFd>) -> Result<(), RootError> {
    if paths.is_empty() {
        return Ok(());
    }
    let agents;
    let null = match own {
        Some(own) => own,
        None => {
            agents = null().map_err(failed("opening the null device at", "/dev/null"))?;
            &agents
        }
    };
    for path in paths {
        let steps = || -> Result<(), Errno> {
            // A link is hidden itself: what it leads to may have other names that are in use, as
            // busybox has.
            let Some(target) = target(root, path, OFlags::NOFOLLOW)? else {
                return Ok(());
            };
            let mode = rustix::fs::fstat(&target)?.st_mode;
            let cover = if FileType::from_raw_mode(mode) == FileType::Directory {
                detached::empty()?
            } else {
                // The device is read and written all the same; its mode and owner stay.
                let null = detached::clone(null, false)?;
                let change = Change {
                    set: mount_attr::RDONLY | mount_attr::NOSUID | mount_attr::NOEXEC,
                    ..Change::default()
                };
                mount_attr::change(&null, change)?;
                null
            };
            detached::attach(&cover, &target)
        };
        steps().map_err(failed("hiding", path))?;
    }
    Ok(())
}

/// The agent's own null device: a volume may have anything at /dev/null.
fn null() -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let null = rustix::fs::open("/dev/null", flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&null)?;
    let number = (
        rustix::fs::major(stat.st_rdev),
        rustix::fs::minor(stat.st_rdev),
    );
    let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    if is_device && number == NULL {
        Ok(null)
    } else {
        Err(Errno::NODEV)
    }
}
