//! The share directory of a pod on the host: a mount of its own in the jail, which the VMM's mount
//! namespace follows. What is mounted on it is not decided here (see `volumes`).

use std::{
    fs, io,
    os::unix::{ffi::OsStringExt as _, fs::PermissionsExt as _},
    path::{Path, PathBuf},
};

use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};

use tonic::Code;

use super::JailDir;
use crate::error::{Grpc, io_code};

/// Mounts that come back after they were taken off this often are somebody's who wants them.
const ROUNDS: usize = 4;

/// What can go wrong with a share.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// A system call failed.
    #[error("cannot {action} {path}")]
    Os {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A mount does not go.
    #[error("{path} is still mounted; what is below it is not removed")]
    StillMounted {
        /// The mount.
        path: PathBuf,
    },
}

impl Grpc for ShareError {
    fn code(&self) -> Code {
        match self {
            Self::Os { source, .. } => io_code(source),
            Self::StillMounted { .. } => Code::Internal,
        }
    }
}

fn os<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> ShareError {
    let path = path.to_owned();
    move |source| ShareError::Os {
        action,
        path,
        source: source.into(),
    }
}

/// Makes the share of a jail. It goes with [`detach_below`] before the jail's directory is
/// removed. Blocks.
pub fn make_share(jail: &JailDir) -> Result<(), ShareError> {
    let share = jail.share();
    fs::create_dir(&share).map_err(os("make the directory", &share))?;
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(&share, mode).map_err(os("set the mode of", &share))?;
    mount_bind(&share, &share).map_err(os("make a mount of", &share))?;
    // Private first: else it stays a peer of the mount it is made from (/run is shared), and each
    // volume would be mounted there once more.
    let changes = [
        ("make private", MountPropagationFlags::PRIVATE),
        ("make shared", MountPropagationFlags::SHARED),
    ];
    for (action, flags) in changes {
        mount_change(&share, flags).map_err(os(action, &share))?;
    }
    Ok(())
}

/// Takes off whatever is mounted below a directory that is to be removed, so that the removal
/// reaches nothing but the directory's own files. Blocks.
pub fn detach_below(dir: &Path) -> Result<(), ShareError> {
    const MOUNTS: &str = "/proc/self/mountinfo";
    for _ in 0..ROUNDS {
        let table = fs::read(MOUNTS).map_err(os("read", Path::new(MOUNTS)))?;
        let mounts = mounts_below(&table, dir);
        if mounts.is_empty() {
            return Ok(());
        }
        // The last mounted first.
        for path in mounts.iter().rev() {
            // DETACH takes what is mounted on it, too, and a VMM that still has it open does not
            // keep it. One that went with its parent meanwhile is no error.
            match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
                Err(error) => return Err(os("unmount", path)(error)),
            }
        }
    }
    let table = fs::read(MOUNTS).map_err(os("read", Path::new(MOUNTS)))?;
    match mounts_below(&table, dir).pop() {
        None => Ok(()),
        Some(path) => Err(ShareError::StillMounted { path }),
    }
}

/// The mount points below `dir` in a mountinfo table (proc(5)), `dir` itself included.
fn mounts_below(table: &[u8], dir: &Path) -> Vec<PathBuf> {
    table
        .split(|b| *b == b'\n')
        .filter_map(|line| line.split(|b| *b == b' ').nth(4))
        .map(|field| PathBuf::from(std::ffi::OsString::from_vec(unescaped(field))))
        .filter(|path| path.starts_with(dir))
        .collect()
}

/// Space, tab, newline and backslash stand as a backslash and three octal digits.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = after
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                out.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_whole_names_and_unescaped() {
        let table = b"1 0 0:1 / / rw - x x rw\n\
            2 1 0:1 / /run/pods/a/vm/share rw shared:1 - tmpfs tmpfs rw\n\
            3 2 0:1 / /run/pods/a/vm/share/with\\040space rw - x x rw\n\
            4 1 0:1 / /run/pods/ab/vm/share rw - x x rw\n";
        let found = mounts_below(table, Path::new("/run/pods/a"));
        let expected = ["/run/pods/a/vm/share", "/run/pods/a/vm/share/with space"];
        assert_eq!(found, expected.map(PathBuf::from));
        assert!(mounts_below(table, Path::new("/run/pods/c")).is_empty());
        assert_eq!(unescaped(b"a\\134b\\"), b"a\\b\\");
    }

    #[test]
    fn a_share_is_made_and_goes_with_what_is_mounted_on_it() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let jail = JailDir::of_pod(dir.path());
        fs::create_dir(jail.root()).unwrap();
        make_share(&jail).unwrap();
        let volume = dir.path().join("volume");
        fs::create_dir(&volume).unwrap();
        fs::write(volume.join("kept"), "x").unwrap();
        let place = jail.share().join("a b");
        fs::create_dir(&place).unwrap();
        mount_bind(&volume, &place).unwrap();
        assert!(place.join("kept").exists());
        let table = fs::read("/proc/self/mountinfo").unwrap();
        // Once, not also on the mount the share was made from.
        assert_eq!(mounts_below(&table, dir.path()), [jail.share(), place]);

        detach_below(jail.root()).unwrap();
        fs::remove_dir_all(jail.root()).unwrap();
        assert!(volume.join("kept").exists());
        detach_below(jail.root()).unwrap();
    }
}
