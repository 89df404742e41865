//! The directory a pod's virtio-fs device serves, on the host. Its root is a read-only mount of a
//! directory only the daemon writes, so that a guest cannot make or remove anything in it; each
//! volume is a mount on an entry of it. The VMM has the whole as a slave: what is mounted here
//! appears there.
//!
//! Everything here blocks.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags},
    io::Errno,
    mount::{
        MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_bind,
        mount_change, mount_remount, move_mount, open_tree, unmount,
    },
};
use serde::{Deserialize, Serialize};

use super::{
    VolumeError,
    mountinfo::{self, MountInfo},
};
use crate::vmm::JailDir;

/// Where a pod's share is.
#[derive(Debug, Clone)]
pub struct Share {
    /// What is mounted on `root`: the entries are made here.
    entries: PathBuf,
    /// Where volumes are mounted, below the jail's root.
    root: PathBuf,
    /// Where a volume is put together before it is shown.
    stage: PathBuf,
}

/// What of a mount cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadOnly {
    /// Nothing.
    No,
    /// The mount itself; mounts below it are as they are.
    Top,
    /// All of it.
    Recursive,
}

/// How a volume is to be mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Manner {
    /// What of it cannot be written.
    pub read_only: ReadOnly,
    /// Whether mounts made later on the host appear in it.
    pub follows_host: bool,
}

impl Share {
    /// Of the pod with this run-time directory.
    pub fn of_pod(pod_dir: &Path) -> Self {
        Self {
            entries: pod_dir.join("shared"),
            root: JailDir::of_pod(pod_dir).share(),
            stage: pod_dir.join("stage"),
        }
    }

    /// Whether it was made and not taken down.
    pub fn exists(&self) -> bool {
        self.entries.exists()
    }

    /// The mount point.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes it, with nothing in it.
    pub fn create(&self) -> Result<(), VolumeError> {
        for dir in [&self.entries, &self.root, &self.stage] {
            let made = fs::DirBuilder::new().mode(0o755).create(dir);
            made.map_err(host("make the directory", dir))?;
        }
        mount_bind(&self.entries, &self.root)
            .map_err(|e| host("mount the pod's shared directory at", &self.root)(e.into()))?;
        // Its own group of peers, whatever the file system around it is in: the VMM's copy becomes
        // a slave of it.
        let set_up = || {
            mount_change(&self.root, MountPropagationFlags::PRIVATE)?;
            mount_change(&self.root, MountPropagationFlags::SHARED)?;
            let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NODEV;
            mount_remount(&self.root, flags, c"")
        };
        set_up().map_err(|e: Errno| host("set up the mount", &self.root)(e.into()))
    }

    /// Mounts a file or directory of the host as `name`. One that is there already stays.
    pub fn add(
        &self,
        name: &str,
        source: BorrowedFd<'_>,
        manner: Manner,
    ) -> Result<(), VolumeError> {
        let shown = self.root.join(name);
        let root = open(CWD, &self.root, OFlags::DIRECTORY)
            .map_err(|e| host("open", &self.root)(e.into()))?;
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |e: Errno| host(action, &path)(e.into())
        };
        let directory = is_directory(source).map_err(failed("look at the source of", &shown))?;
        let entry = self.entries.join(name);
        make_entry(&entry, directory).map_err(host("make", &entry))?;
        if self.has(name)? {
            return Ok(());
        }
        let tree = open_tree(
            source,
            "",
            OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_RECURSIVE
                | OpenTreeFlags::AT_EMPTY_PATH,
        )
        .map_err(failed("copy the mounts for", &shown))?;
        let staged = Stage::open(&self.stage, directory)?;
        move_mount(
            &tree,
            "",
            CWD,
            staged.place(),
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
        .map_err(failed("mount on", staged.place()))?;
        staged.adjust(manner)?;
        let finished = open_tree(
            CWD,
            staged.place(),
            OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_RECURSIVE,
        )
        .map_err(failed("copy", staged.place()))?;
        let place =
            open(&root, Path::new(name), OFlags::empty()).map_err(failed("open", &shown))?;
        move_mount(
            &finished,
            "",
            &place,
            "",
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
        )
        .map_err(failed("mount on", &shown))
    }

    /// Whether something is mounted as `name`.
    pub fn has(&self, name: &str) -> Result<bool, VolumeError> {
        let at = as_listed(&self.root.join(name));
        Ok(mounts()?.iter().any(|mount| mount.mount_point == at))
    }

    /// Takes a volume away. One that is not there is no error.
    pub fn remove(&self, name: &str) -> Result<(), VolumeError> {
        let shown = self.root.join(name);
        detach_all(&shown)?;
        let entry = self.entries.join(name);
        // Nothing is mounted here, only beside it: what is removed is an empty entry.
        let removed = match fs::symlink_metadata(&entry) {
            Ok(meta) if meta.is_dir() => fs::remove_dir(&entry),
            Ok(_) => fs::remove_file(&entry),
            Err(error) => Err(error),
        };
        match removed {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(host("remove", &entry)(e)),
            _ => Ok(()),
        }
    }

    /// Takes everything down. Repeatable.
    pub fn destroy(&self) -> Result<(), VolumeError> {
        detach_all(&self.root)?;
        detach_all(&self.stage)
    }
}

/// A private place for one mount, away from all others; it goes when dropped.
struct Stage {
    base: PathBuf,
    place: PathBuf,
}

impl Stage {
    fn open(base: &Path, directory: bool) -> Result<Self, VolumeError> {
        detach_all(base)?;
        let failed = |e: Errno| host("mount a private directory on", base)(e.into());
        mount_bind(base, base).map_err(failed)?;
        let stage = Self {
            base: base.to_owned(),
            place: base.join(if directory { "directory" } else { "file" }),
        };
        mount_change(base, MountPropagationFlags::PRIVATE).map_err(failed)?;
        make_entry(&stage.place, directory).map_err(host("make", &stage.place))?;
        Ok(stage)
    }

    fn place(&self) -> &Path {
        &self.place
    }

    /// Propagation, then what is read-only: what is seen of it later is so from the beginning.
    fn adjust(&self, manner: Manner) -> Result<(), VolumeError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |e: Errno| host("change the mount", &path)(e.into())
        };
        let direction = match manner.follows_host {
            true => MountPropagationFlags::DOWNSTREAM,
            false => MountPropagationFlags::PRIVATE,
        };
        mount_change(&self.place, direction | MountPropagationFlags::REC)
            .map_err(failed(&self.place))?;
        if manner.read_only == ReadOnly::No {
            return Ok(());
        }
        let place = as_listed(&self.place);
        for mount in mounts()? {
            let affected = match manner.read_only {
                ReadOnly::Recursive => mountinfo::is_at_or_below(&mount, &place),
                _ => mount.mount_point == place,
            };
            if affected {
                // mount(2) takes the whole set of flags: those it has stay.
                let flags = MountFlags::BIND | MountFlags::RDONLY | flags(&mount);
                mount_remount(&mount.mount_point, flags, c"")
                    .map_err(failed(&mount.mount_point))?;
            }
        }
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(error) = detach_all(&self.base) {
            // The pod's release tries again.
            tracing::warn!("{}", crate::error::chain(&error));
        }
    }
}

/// The flags a mount has, as mount(2) takes them.
fn flags(mount: &MountInfo) -> MountFlags {
    mount
        .options
        .iter()
        .map(|option| match option.as_str() {
            "nosuid" => MountFlags::NOSUID,
            "nodev" => MountFlags::NODEV,
            "noexec" => MountFlags::NOEXEC,
            "noatime" => MountFlags::NOATIME,
            "nodiratime" => MountFlags::NODIRATIME,
            "relatime" => MountFlags::RELATIME,
            _ => MountFlags::empty(),
        })
        .fold(MountFlags::empty(), |all, one| all | one)
}

/// Detaches every mount at or below a path, the uppermost last, and sees that none is left: after
/// this, removing what is there removes nothing else.
pub fn detach_all(path: &Path) -> Result<(), VolumeError> {
    let path = &as_listed(path);
    // Mounts can be stacked on one point, and new ones can come from the host meanwhile.
    for _ in 0..4 {
        let below: Vec<MountInfo> = mounts()?
            .into_iter()
            .filter(|mount| mountinfo::is_at_or_below(mount, path))
            .collect();
        if below.is_empty() {
            return Ok(());
        }
        for mount in below.iter().rev() {
            match unmount(
                &mount.mount_point,
                UnmountFlags::DETACH | UnmountFlags::NOFOLLOW,
            ) {
                // Gone with one above it.
                Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
                Err(error) => return Err(host("unmount", &mount.mount_point)(error.into())),
            }
        }
    }
    let left: Vec<MountInfo> = mounts()?
        .into_iter()
        .filter(|mount| mountinfo::is_at_or_below(mount, path))
        .collect();
    match left.first() {
        None => Ok(()),
        Some(first) => Err(VolumeError::StillMounted {
            path: path.to_owned(),
            count: left.len(),
            first: first.mount_point.clone(),
        }),
    }
}

/// A path as the kernel lists it: without links on the way to it. The last part stays as it is,
/// because it may lie in a directory that is not the daemon's alone.
fn as_listed(path: &Path) -> PathBuf {
    let parent = path.parent().and_then(|parent| parent.canonicalize().ok());
    match (parent, path.file_name()) {
        (Some(parent), Some(name)) => parent.join(name),
        _ => path.to_owned(),
    }
}

fn mounts() -> Result<Vec<MountInfo>, VolumeError> {
    mountinfo::read().map_err(host("read", Path::new("/proc/thread-self/mountinfo")))
}

fn open(at: impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC | flags;
    rustix::fs::openat(at, path, flags, Mode::empty())
}

fn is_directory(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let mode = rustix::fs::fstat(fd)?.st_mode;
    Ok(FileType::from_raw_mode(mode) == FileType::Directory)
}

/// An empty directory or file to mount on; one that is there is fine.
fn make_entry(path: &Path, directory: bool) -> io::Result<()> {
    let made = match directory {
        true => fs::DirBuilder::new().mode(0o755).create(path),
        false => fs::File::create_new(path).map(drop),
    };
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

fn host(action: &'static str, path: &Path) -> impl Fn(io::Error) -> VolumeError + use<> {
    let path = path.to_owned();
    move |source| VolumeError::Host {
        action,
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests;
