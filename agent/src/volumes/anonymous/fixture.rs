//! What the tests of anonymous volumes share: a root with a place for a volume, and looks at trees.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::make;
use crate::volumes::error::VolumeError;
use crate::volumes::remove;

/// A root to be with a volume at /data, and the place of the volume.
pub(super) struct Case {
    pub(super) dir: tempfile::TempDir,
}

impl Case {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        Self { dir }
    }

    pub(super) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub(super) fn place(&self) -> PathBuf {
        self.dir.path().join("volume-0")
    }

    pub(super) fn make(&self, destination: &str) -> Result<PathBuf, VolumeError> {
        make(&self.root(), Path::new(destination), self.place(), None)
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        // Some are too deep for the temporary directory's own removal.
        let _ = remove::tree(&self.root());
        let _ = remove::tree(&self.place());
    }
}

/// Only root can give files away.
pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The names in a directory, in order.
pub(super) fn names(directory: &Path) -> Vec<OsString> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

/// The extended attributes of a file.
pub(super) fn attributes(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
    let mut list = vec![0; 65536];
    let length = rustix::fs::llistxattr(path, &mut list[..]).unwrap();
    let names = list[..length].split(|byte| *byte == 0);
    names
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 65536];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            value.truncate(length);
            (OsStr::from_bytes(name).to_owned(), value)
        })
        .collect()
}
