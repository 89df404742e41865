//! The directory a pod's virtio-fs device serves. Its root is a read-only mount of a directory only
//! the daemon writes, so that a guest cannot make or remove anything in it; each volume is a mount
//! on an entry of it, made in the VMM's mount namespace and nowhere else: on the host nothing of it
//! is seen, no mount point of the host is kept from being removed, and all ends with the VMM.
//!
//! Everything here blocks.

use std::{
    fs, io,
    os::fd::{BorrowedFd, OwnedFd},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use nix::sched::{CloneFlags, setns, unshare};
use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxAttributes, StatxFlags},
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
use crate::machine::vm::JailDir;

/// Where a pod's share is.
#[derive(Debug, Clone)]
pub struct Share {
    /// What is mounted on `root`: the entries are made here.
    entries: PathBuf,
    /// Where the VMM finds it, below the jail's root.
    root: PathBuf,
    /// Where a volume is put together before it is shown.
    stage: PathBuf,
}

/// The mount namespace of a VMM, in which volumes are mounted: no other process sees them, and they end
/// with it.
#[derive(Debug)]
pub struct Inside {
    process: OwnedFd,
    /// The share's path there.
    share: PathBuf,
}

impl Inside {
    /// Of the VMM with this pidfd.
    pub fn of_vmm(process: OwnedFd) -> Self {
        // The jail's root is its whole file system.
        let share = Path::new("/").join(JailDir::SHARE);
        Self { process, share }
    }

    /// Works in the namespace, on a thread that ends with it.
    fn run(&self, work: impl FnOnce() -> Result<(), Errno> + Send) -> io::Result<()> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                // A thread that shares its root directory with others may not change it.
                unshare(CloneFlags::CLONE_FS).map_err(io::Error::from)?;
                setns(&self.process, CloneFlags::CLONE_NEWNS).map_err(io::Error::from)?;
                Ok(work()?)
            });
            let panicked = |_| Err(io::Error::other("the thread panicked"));
            thread.join().unwrap_or_else(panicked)
        })
    }
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
pub struct MountOptions {
    /// What of it cannot be written.
    pub read_only: ReadOnly,
    /// Whether mounts made later on the host appear in it.
    pub follows_host: bool,
    /// Whether mounts made later in it appear on the host (on the handler `host` alone).
    #[serde(default)]
    pub returns: bool,
    /// Whether a guest keeps all of it read-only by itself, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sealed: bool,
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

    /// Mounts a file or directory of the host as `name`, for the VMM alone. One that is there
    /// already stays.
    pub fn add(
        &self,
        inside: &Inside,
        name: &str,
        source: BorrowedFd<'_>,
        options: MountOptions,
    ) -> Result<(), VolumeError> {
        let shown = self.root.join(name);
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |e: Errno| host(action, &path)(e.into())
        };
        let directory = is_directory(source).map_err(failed("look at the source of", &shown))?;
        let entry = self.entries.join(name);
        make_entry(&entry, directory).map_err(host("make", &entry))?;
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
        staged.adjust(options)?;
        let finished = open_tree(
            CWD,
            staged.place(),
            OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_RECURSIVE,
        )
        .map_err(failed("copy", staged.place()))?;
        drop(staged);
        let place = inside.share.join(name);
        let mounted = inside.run(move || {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let at = rustix::fs::open(&place, flags, Mode::empty())?;
            let found = rustix::fs::statx(&at, "", AtFlags::EMPTY_PATH, StatxFlags::empty())?;
            if found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
                return Ok(());
            }
            move_mount(
                &finished,
                "",
                &at,
                "",
                MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
            )
        });
        mounted.map_err(host("mount for the VMM on", &shown))
    }

    /// Takes a volume away; without a VMM its mounts are gone already. One that is not there is no
    /// error.
    pub fn remove(&self, inside: Option<&Inside>, name: &str) -> Result<(), VolumeError> {
        if let Some(inside) = inside {
            let place = inside.share.join(name);
            let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
            let taken = inside.run(move || match unmount(&place, flags) {
                Err(Errno::INVAL | Errno::NOENT) => Ok(()),
                other => other,
            });
            match taken {
                // The VMM has ended meanwhile.
                Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => {}
                other => other.map_err(host("unmount for the VMM", &self.root.join(name)))?,
            }
        }
        let entry = self.entries.join(name);
        // Nothing is mounted here, only where the VMM sees it: what is removed is an empty entry.
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
    fn adjust(&self, options: MountOptions) -> Result<(), VolumeError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |e: Errno| host("change the mount", &path)(e.into())
        };
        let direction = match options.follows_host {
            true => MountPropagationFlags::DOWNSTREAM,
            false => MountPropagationFlags::PRIVATE,
        };
        mount_change(&self.place, direction | MountPropagationFlags::REC)
            .map_err(failed(&self.place))?;
        if options.read_only == ReadOnly::No {
            return Ok(());
        }
        let place = as_listed(&self.place);
        for mount in mounts()? {
            let affected = match options.read_only {
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
