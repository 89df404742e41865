//! How much disk images and pods' writable disks use: CRI ImageFsInfo.
//!
//! The kubelet asks every ten seconds and evicts by the answer. The figures are kept for a
//! moment and counted anew when the store has changed or they are old.

use std::{
    fs,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, Instant},
};

use bulkhead_common::lock;

use crate::{error::ImagesError, store::now};

/// Figures younger than this are given again; a pull under way changes them all the time.
const FRESH: Duration = Duration::from_secs(5);

/// Use of one directory tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// When it was counted, nanoseconds since 1970.
    pub timestamp: i64,
    /// The mount point that holds the tree.
    pub mountpoint: PathBuf,
    /// Bytes that the files take on disk.
    pub used_bytes: u64,
    /// How many files there are.
    pub inodes: u64,
}

/// Counts, and remembers for a moment.
#[derive(Debug, Default)]
pub struct Meter {
    last: Mutex<Option<(Instant, Usage)>>,
}

impl Meter {
    /// The use of `dir`, whose files lie at most two levels deep. Blocks.
    pub fn usage(&self, dir: &Path) -> Result<Usage, ImagesError> {
        let last = || lock(&self.last);
        if let Some((when, usage)) = last().as_ref()
            && when.elapsed() < FRESH
        {
            return Ok(usage.clone());
        }
        let usage = count(dir)?;
        *last() = Some((Instant::now(), usage.clone()));
        Ok(usage)
    }

    /// The figures are known to be wrong now.
    pub fn forget(&self) {
        *lock(&self.last) = None;
    }
}

fn count(dir: &Path) -> Result<Usage, ImagesError> {
    let failed = |action, path: &Path, source| ImagesError::Disk {
        action,
        path: path.into(),
        source,
    };
    let real = dir
        .canonicalize()
        .map_err(|e| failed("find the directory", dir, e))?;
    let (mut used_bytes, mut inodes) = (0_u64, 0_u64);
    let mut trees = vec![(real.clone(), 0)];
    while let Some((tree, depth)) = trees.pop() {
        let entries = match fs::read_dir(&tree) {
            Ok(entries) => entries,
            // A pod's directory that has just gone.
            Err(_) if depth > 0 => continue,
            Err(error) => return Err(failed("list the directory", &tree, error)),
        };
        for entry in entries.flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            inodes = inodes.saturating_add(1);
            used_bytes = used_bytes.saturating_add(meta.blocks().saturating_mul(512));
            if meta.is_dir() && depth < 2 {
                trees.push((entry.path(), depth + 1));
            }
        }
    }
    let mounts = fs::read("/proc/self/mountinfo")
        .map_err(|e| failed("read", Path::new("/proc/self/mountinfo"), e))?;
    Ok(Usage {
        timestamp: i64::try_from(now().saturating_mul(1_000_000_000)).unwrap_or(i64::MAX),
        mountpoint: mountpoint(&mounts, &real).unwrap_or_else(|| PathBuf::from("/")),
        used_bytes,
        inodes,
    })
}

/// The mount point in a mountinfo text (proc(5)) that holds `path`: the longest that is a
/// beginning of it; of several mounts there, all have the same name.
fn mountpoint(mountinfo: &[u8], path: &Path) -> Option<PathBuf> {
    mountinfo
        .split(|&byte| byte == b'\n')
        .filter_map(|line| line.split(|&byte| byte == b' ').nth(4))
        .map(|field| PathBuf::from(std::ffi::OsStr::from_bytes(&unescape(field))))
        .filter(|mount| path.starts_with(mount))
        .max_by_key(|mount| mount.components().count())
}

/// Space, tab, newline and backslash are written as `\` and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let octal = match after {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] if first == b'\\' => {
                Some((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'))
            }
            _ => None,
        };
        match octal {
            Some(byte) => {
                out.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                out.push(first);
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
    fn the_mount_that_holds_a_path() {
        let text = b"22 1 8:1 / / rw - ext4 /dev/a rw\n\
            23 22 8:2 / /var/lib rw - ext4 /dev/b rw\n\
            24 22 8:3 / /var/li rw - ext4 /dev/c rw\n\
            25 22 8:4 / /var/lib/with\\040space rw - ext4 /dev/d rw\nbroken\n";
        let of = |path: &str| mountpoint(text, Path::new(path)).unwrap();
        assert_eq!(of("/var/lib/bulkhead/images"), Path::new("/var/lib"));
        assert_eq!(of("/var/library"), Path::new("/"));
        assert_eq!(
            of("/var/lib/with space/x"),
            Path::new("/var/lib/with space")
        );
        assert_eq!(mountpoint(b"", Path::new("/x")), None);
    }

    #[test]
    fn blocks_are_counted_not_lengths() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("pod")).unwrap();
        let sparse = fs::File::create(dir.path().join("pod/scratch.img")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        fs::write(dir.path().join("file"), vec![1; 100_000]).unwrap();
        let meter = Meter::default();
        let usage = meter.usage(dir.path()).unwrap();
        assert_eq!(usage.inodes, 3);
        assert!(
            (100_000..1_000_000).contains(&usage.used_bytes),
            "{usage:?}"
        );
        assert!(
            dir.path()
                .canonicalize()
                .unwrap()
                .starts_with(&usage.mountpoint)
        );

        fs::write(dir.path().join("more"), b"x").unwrap();
        assert_eq!(meter.usage(dir.path()).unwrap().inodes, 3, "remembered");
        meter.forget();
        assert_eq!(meter.usage(dir.path()).unwrap().inodes, 4);
        assert!(Meter::default().usage(Path::new("/no/such/dir")).is_err());
    }
}
