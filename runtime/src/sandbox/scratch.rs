//! The pods' writable disks: an empty ext4 file system per size, made once, and a sparse copy of
//! it for each pod.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
};

use bulkhead_common::lock;
use rustix::fs::{SeekFrom as At, ioctl_ficlone};

use super::SandboxError;
use crate::durable;

/// One at a time makes a template.
static MAKING: Mutex<()> = Mutex::new(());
const CHUNK: usize = 1 << 20;

/// Makes a pod's writable disk at `path` and opens it. Blocks.
pub fn create(state_dir: &Path, path: &Path, mib: u64) -> Result<File, SandboxError> {
    let template = template(state_dir, mib)?;
    let os = |source| SandboxError::Os {
        action: format!(
            "copy the empty disk {} to {}",
            template.display(),
            path.display()
        ),
        source,
    };
    let mut from = File::open(&template).map_err(os)?;
    let mut to = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(os)?;
    // A file system with shared extents (XFS, btrfs) copies nothing at all.
    if ioctl_ficlone(&to, &from).is_err() {
        copy_sparse(&mut from, &mut to).map_err(os)?;
    }
    Ok(to)
}

fn template(state_dir: &Path, mib: u64) -> Result<PathBuf, SandboxError> {
    let dir = state_dir.join("templates");
    let path = dir.join(format!("scratch-{mib}.ext4"));
    let os = |source| SandboxError::Os {
        action: format!("make the empty disk {}", path.display()),
        source,
    };
    let _one = lock(&MAKING);
    if path.exists() {
        return Ok(path);
    }
    fs::create_dir_all(&dir).map_err(os)?;
    let unfinished = dir.join(format!("scratch-{mib}.tmp"));
    let file = File::create(&unfinished).map_err(os)?;
    file.set_len(mib.saturating_mul(1 << 20)).map_err(os)?;
    let output = Command::new("mkfs.ext4")
        // No journal: a disk that lives as long as its VM is never replayed. The file is all
        // zeroes already, so neither mkfs nor the guest's kernel has inode tables to clear.
        .args(["-q", "-F", "-O", "^has_journal", "-m", "0", "-i", "32768"])
        .args([
            "-E",
            "lazy_itable_init=1,assume_storage_prezeroed=1,nodiscard",
        ])
        .arg(&unfinished)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => os(io::Error::new(
                source.kind(),
                "there is no mkfs.ext4: install the package e2fsprogs",
            )),
            _ => os(source),
        })?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let _gone = fs::remove_file(&unfinished);
        return Err(os(io::Error::other(format!("mkfs.ext4 failed: {words}"))));
    }
    durable::rename(&unfinished, &path).map_err(os)?;
    Ok(path)
}

/// Copies the data and keeps the holes.
fn copy_sparse(from: &mut File, to: &mut File) -> io::Result<()> {
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let mut at = 0;
    let mut buffer = vec![0; CHUNK];
    while at < length {
        // ENXIO: no data from here to the end (lseek(2)).
        let start = match rustix::fs::seek(&*from, At::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break,
            Err(e) => return Err(e.into()),
        };
        let end = rustix::fs::seek(&*from, At::Hole(start))?;
        from.seek(SeekFrom::Start(start))?;
        to.seek(SeekFrom::Start(start))?;
        let mut left = end.saturating_sub(start);
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            let Some(part) = buffer.get_mut(..want) else {
                break;
            };
            from.read_exact(part)?;
            to.write_all(part)?;
            left -= want as u64;
        }
        at = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_copy_has_the_data_and_the_holes() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let mut file = File::create(&a).unwrap();
        file.set_len(64 << 20).unwrap();
        file.seek(SeekFrom::Start(5 << 20)).unwrap();
        file.write_all(&[7; 3_000_000]).unwrap();
        let mut copy = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&b)
            .unwrap();
        copy_sparse(&mut File::open(&a).unwrap(), &mut copy).unwrap();
        assert_eq!(fs::read(&a).unwrap(), fs::read(&b).unwrap());
        assert!(fs::metadata(&b).unwrap().blocks() * 512 < 8 << 20);
    }

    #[test]
    fn a_disk_is_an_ext4_file_system_and_small() {
        if Command::new("mkfs.ext4")
            .arg("-V")
            .stderr(Stdio::null())
            .status()
            .is_err()
        {
            println!("skipped: there is no mkfs.ext4");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scratch.img");
        let mut disk = create(dir.path(), &path, 1024).unwrap();
        let mut magic = [0; 2];
        // The superblock's magic (ext4 disk layout): 0xEF53 at 0x438.
        disk.seek(SeekFrom::Start(0x438)).unwrap();
        disk.read_exact(&mut magic).unwrap();
        assert_eq!(magic, [0x53, 0xef]);
        assert!(disk.metadata().unwrap().blocks() * 512 < 8 << 20);
        assert!(
            create(dir.path(), &path, 1024).is_err(),
            "made over another pod's disk"
        );
    }
}
