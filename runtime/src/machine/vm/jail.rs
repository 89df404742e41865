//! The directory a VMM lives in, from outside. Whatever is in it the VMM may have put there, and a
//! guest may have taken the VMM over: symbolic links are not followed, only what is expected is
//! opened, and only so much is read.

use std::{
    io::{self, Read as _, Seek as _, SeekFrom},
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::fs::{FileType, Mode, OFlags};
use tokio::net::UnixStream;

/// The files in a pod's jail, by their names in docs/vmm-api.md.
#[derive(Debug, Clone)]
pub struct JailDir {
    root: PathBuf,
}

impl JailDir {
    /// The share's name in the jail.
    pub const SHARE: &str = "share";

    /// Of the pod whose run-time directory this is.
    pub fn of_pod(pod_dir: &Path) -> Self {
        Self {
            root: pod_dir.join("vm"),
        }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The vsock device's socket.
    pub fn vsock(&self) -> PathBuf {
        self.root.join("vsock.sock")
    }

    /// Where the guest's connections to a host port arrive.
    pub fn vsock_port(&self, port: u32) -> PathBuf {
        self.root.join(format!("vsock.sock_{port}"))
    }

    /// The control socket.
    pub fn control(&self) -> PathBuf {
        self.root.join("control.sock")
    }

    /// The guest's console.
    pub fn console(&self) -> PathBuf {
        self.root.join("console.log")
    }

    /// What the VMM logs.
    pub fn log(&self) -> PathBuf {
        self.root.join("vmm.log")
    }

    /// What the guest gets by virtio-fs: a mount of its own, on which volumes are mounted.
    pub fn share(&self) -> PathBuf {
        self.root.join(Self::SHARE)
    }

    /// How the VM ended.
    pub fn exit(&self) -> PathBuf {
        self.root.join("exit.json")
    }
}

/// Connects to a socket in a jail; a symbolic link there is refused.
pub async fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let socket = rustix::fs::open(path, flags, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&socket)?.st_mode) != FileType::Socket {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a socket"));
    }
    // The link leads to the very inode that was looked at.
    UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd())).await
}

/// Opens a regular file in a jail for reading.
pub fn open_file(path: &Path) -> io::Result<std::fs::File> {
    // NONBLOCK: a FIFO in its place must not hold us.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd: OwnedFd = rustix::fs::open(path, flags, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ));
    }
    Ok(fd.into())
}

/// The last `limit` bytes of a file in a jail, as text. Blocks.
pub fn tail(path: &Path, limit: u32) -> io::Result<String> {
    let mut file = open_file(path)?;
    let length = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(length.saturating_sub(u64::from(limit))))?;
    let mut bytes = Vec::new();
    file.take(u64::from(limit)).read_to_end(&mut bytes)?;
    Ok(printable(&bytes))
}

/// Text for logs and messages from whatever a guest wrote: control characters (terminal escapes
/// among them) are replaced.
pub fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .filter(|c| *c != '\r')
        .map(|c| {
            if c.is_control() && c != '\n' && c != '\t' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn links_fifos_and_other_kinds_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real.sock");
        let _listener = tokio::net::UnixListener::bind(&real).unwrap();
        connect(&real).await.unwrap();
        let link = dir.path().join("link.sock");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert!(connect(&link).await.is_err());
        let file = dir.path().join("file");
        std::fs::write(&file, "a\u{1b}[31mbc").unwrap();
        assert!(connect(&file).await.is_err());
        assert_eq!(tail(&file, 2).unwrap(), "bc");
        assert_eq!(tail(&file, 100).unwrap(), "a\u{fffd}[31mbc");
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(tail(&link, 10).is_err());
        assert!(tail(&real, 10).is_err());
    }
}
