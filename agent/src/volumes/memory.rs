//! File systems in memory that all containers of the pod share: tmpfs and hugetlbfs. Blocks.

use std::ffi::CString;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use bulkhead_proto::agent::{MemoryVolume, Ownership};
use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use super::error::VolumeError;
use super::place;
use crate::huge_pages;

/// Mounts the volume at `at` if it is not mounted, and returns the path of the requested part; a
/// part other than the whole is mounted at `placed`.
///
/// # Errors
/// If the kernel refuses, or the part leads out of the volume.
pub fn mount(volume: &MemoryVolume, at: &Path, placed: PathBuf) -> Result<PathBuf, VolumeError> {
    if !is_mounted(at) {
        place::make_directory(at)?;
        mount_new(volume, at)?;
    } else if volume.huge_page_bytes == 0 {
        // The kubelet may have resized it since. One that holds more keeps its limit, and the
        // container starts: the daemon tells of it.
        let _ = resize(at, volume.bytes);
    }
    if volume.sub_path.is_empty() {
        return Ok(at.to_owned());
    }
    let part = part(
        at,
        &volume.sub_path,
        volume.sub_path_made.unwrap_or_default(),
    )
    .map_err(|error| VolumeError::Part {
        what: format!("the volume {:?} in memory", volume.name),
        part: volume.sub_path.clone(),
        error: error.into(),
    })?;
    place::mount(part, &placed)?;
    Ok(placed)
}

/// Gives a tmpfs another limit.
///
/// # Errors
/// The kernel's, when more is in it.
pub fn resize(at: &Path, bytes: u64) -> Result<(), VolumeError> {
    let data = CString::new(format!("size={bytes}")).unwrap_or_default();
    rustix::mount::mount_remount(at, MountFlags::empty(), data.as_c_str()).map_err(|error| {
        VolumeError::File {
            what: "changing the size of the file system in memory at",
            path: at.to_owned(),
            error: error.into(),
        }
    })
}

/// Whether a file system is mounted there.
pub fn is_mounted(at: &Path) -> bool {
    let device =
        |path: &Path| fs::symlink_metadata(path).map(|m| std::os::unix::fs::MetadataExt::dev(&m));
    match (device(at), at.parent().map(device)) {
        (Ok(own), Some(Ok(above))) => own != above,
        _ => false,
    }
}

fn mount_new(volume: &MemoryVolume, at: &Path) -> Result<(), VolumeError> {
    let root = volume.root.unwrap_or_default();
    let mut options = format!(
        "mode={:o},uid={},gid={}",
        root.mode & 0o7777,
        root.uid,
        root.gid
    );
    let kind = match volume.huge_page_bytes {
        0 => "tmpfs",
        page => {
            options.push_str(&format!(",pagesize={page}"));
            huge_pages::allow(page)?;
            "hugetlbfs"
        }
    };
    if volume.bytes > 0 {
        options.push_str(&format!(",size={}", volume.bytes));
    }
    let data = CString::new(options).unwrap_or_default();
    rustix::mount::mount(kind, at, kind, MountFlags::empty(), Some(data.as_c_str())).map_err(
        |error| VolumeError::File {
            what: "mounting a file system in memory at",
            path: at.to_owned(),
            error: error.into(),
        },
    )
}

/// Opens a part of the volume, made as a directory if it is not there. The pod's containers write
/// in the volume: links are not followed.
fn part(root: &Path, sub_path: &str, made: Ownership) -> Result<OwnedFd, Errno> {
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = flags | OFlags::PATH | OFlags::DIRECTORY;
    let mut at = rustix::fs::openat(CWD, root, directory, Mode::empty())?;
    let mut names = Vec::new();
    for component in Path::new(sub_path).components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::CurDir => {}
            _ => return Err(Errno::INVAL),
        }
    }
    let last = names.pop();
    for name in names {
        match rustix::fs::mkdirat(&at, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        at = rustix::fs::openat(&at, name, directory, Mode::empty())?;
    }
    let Some(name) = last else {
        return Ok(at);
    };
    match rustix::fs::mkdirat(&at, name, Mode::from_raw_mode(0o700)) {
        Ok(()) => {
            let new = rustix::fs::openat(&at, name, flags | OFlags::DIRECTORY, Mode::empty())?;
            let (uid, gid) = (Uid::from_raw(made.uid), Gid::from_raw(made.gid));
            rustix::fs::fchown(&new, Some(uid), Some(gid))?;
            rustix::fs::fchmod(&new, Mode::from_raw_mode(made.mode & 0o7777))?;
            Ok(new)
        }
        Err(Errno::EXIST) => {
            let found = rustix::fs::openat(&at, name, flags | OFlags::PATH, Mode::empty())?;
            let mode = rustix::fs::fstat(&found)?.st_mode;
            match rustix::fs::FileType::from_raw_mode(mode) {
                rustix::fs::FileType::Symlink => Err(Errno::LOOP),
                _ => Ok(found),
            }
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_sub_path_is_made_or_found_and_stays_inside_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        let own = Ownership {
            mode: 0o2770,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
        };
        part(dir.path(), "a/./b", own).unwrap();
        let mode = fs::metadata(dir.path().join("a/b"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o2770);
        part(dir.path(), "a/b", own).unwrap();
        fs::write(dir.path().join("a/file"), "").unwrap();
        part(dir.path(), "a/file", own).unwrap();
        symlink("/etc", dir.path().join("out")).unwrap();
        for bad in ["../x", "/etc", "out", "out/x", "a/../../x"] {
            assert!(part(dir.path(), bad, own).is_err(), "{bad}");
        }
    }
}
