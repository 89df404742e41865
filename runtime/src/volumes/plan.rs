//! What a container's mounts and devices become.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{Mode, OFlags, Stat};

use super::{share::MountOptions, snapshot::Ownership};

/// All of a container's mounts and devices.
#[derive(Debug, Default)]
pub struct Plan {
    /// Its mounts, as CRI ordered them, then those of its image.
    pub volumes: Vec<Volume>,
    /// Its block devices.
    pub disks: Vec<BlockDisk>,
    /// Whether the pod is on the host: what is shared is mounted from where it is.
    pub on_host: bool,
    /// Devices of the guest's own kernel (on the host: of the host's) that it gets.
    pub devices: Vec<GuestDevice>,
}

/// One mount.
#[derive(Debug)]
pub struct Volume {
    /// Where it is in the container.
    pub destination: PathBuf,
    /// Options of the mount in the container, beside its being one.
    pub options: Vec<String>,
    /// What it becomes.
    pub kind: Kind,
}

/// What a mount becomes.
#[derive(Debug)]
pub enum Kind {
    /// A file or directory of the host: in a pod's share, or as it is on the handler `host`.
    Shared(Source, MountOptions),
    /// A file system in the guest's memory that the pod's containers share.
    Memory(Memory),
    /// A copy in the guest that follows the host's: ConfigMaps and their like.
    Copied(Source),
    /// A Unix socket of the host.
    Socket(Source, Ownership),
    /// A device node of the guest's own.
    GuestNode(PathBuf),
    /// An image's files.
    Image(Image),
    /// A directory of the container's own, which begins with what its image has there.
    Anonymous,
}

/// A file or directory of the host, held open: what was looked at is what is used.
#[derive(Debug, Clone)]
pub struct Source {
    /// Opened for its path alone.
    pub fd: Arc<OwnedFd>,
    /// Where it is, without links.
    pub path: PathBuf,
    /// Its device.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
}

impl Source {
    /// Opens a path, links followed, to look at and to mount, and nothing else. Blocks.
    ///
    /// # Errors
    /// If it does not open.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Stat)> {
        let fd = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let stat = rustix::fs::fstat(&fd)?;
        let path = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
        let source = Self {
            fd: Arc::new(fd),
            path,
            device: stat.st_dev,
            inode: stat.st_ino,
        };
        Ok((source, stat))
    }
}

/// A memory-backed emptyDir.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// Its name in the pod.
    pub name: String,
    /// The kubelet's own file system for it.
    pub place: PathBuf,
    /// That file system's device.
    pub device: u64,
    /// Its limit; 0 means none.
    pub bytes: u64,
    /// The size of its pages, for huge ones.
    pub huge_page_bytes: u64,
    /// Its root directory.
    pub root: Ownership,
    /// What of it is mounted; empty for all.
    pub sub_path: PathBuf,
    /// What is mounted.
    pub mounted: Ownership,
}

/// An image volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Which of CRI's mounts it is.
    pub number: usize,
    /// As CRI names it.
    pub reference: String,
    /// What of it is mounted; empty for all.
    pub sub_path: String,
}

/// A block device of the host that becomes a disk of the guest.
#[derive(Debug)]
pub struct BlockDisk {
    /// Its serial in the guest.
    pub serial: String,
    /// The device, open.
    pub file: File,
    /// Its path on the host.
    pub path: PathBuf,
    /// Never written.
    pub read_only: bool,
    /// The node in the container.
    pub destination: PathBuf,
    /// Of r, w and m.
    pub permissions: String,
    /// The node's owner and mode.
    pub ownership: Ownership,
}

/// A device that the container's kernel has under the same number as the host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestDevice {
    /// The node in the container.
    pub destination: PathBuf,
    /// A block device, else a character device.
    pub block: bool,
    /// Major and minor number.
    pub number: (u32, u32),
    /// Of r, w and m.
    pub permissions: String,
    /// The node's owner and mode.
    pub ownership: Ownership,
}
