//! The container's root: its mounts, device nodes, what is hidden, and the change into it. All of
//! it runs in the container's process, in a mount namespace of its own, with root's privileges and
//! an untrusted image: paths of the image are resolved by [`resolve`] alone.
//!
//! Not here: stacking the layers (`container::rootfs`), the process itself (`launcher::finish`).

pub mod detached;
pub mod devices;
pub mod error;
pub mod masks;
pub mod mounts;
pub mod options;
pub mod plan;
pub mod resolve;

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change, move_mount,
    open_tree, unmount,
};

use self::error::RootError;
use self::plan::Plan;
use self::resolve::Make;
use crate::mount_attr::{self, Change};

fn step<T>(what: &'static str, result: Result<T, Errno>) -> Result<T, RootError> {
    result.map_err(|error| RootError::Step { what, error })
}

/// The root before the change into it.
#[derive(Debug)]
pub struct Built {
    root: OwnedFd,
    read_only: bool,
    /// The container's own /dev, unless that is a volume.
    own_dev: Option<devices::OwnDev>,
}

/// Makes the root, from the caller's new mount namespace.
///
/// # Errors
/// For the first step that fails; the mount namespace is useless then.
pub fn build(plan: Plan<'_>) -> Result<Built, RootError> {
    let list = plan.spec.mounts().as_deref().unwrap_or_default();
    // Sources first: what they share with the host's mounts they keep.
    let sources = mounts::open_sources(list, plan.base)?;
    let alone = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    step(
        "separating the container's mounts",
        mount_change("/", alone),
    )?;
    let root = attach_root(plan.rootfs)?;
    let own_dev = mounts::attach_all(&root, list, sources, plan)?;
    devices::make(&root, plan, own_dev.as_ref())?;
    // If it fails, the process fails to enter it at the start.
    let _ = resolve::open_or_make(&root, plan.directory, Make::Directory);
    let linux = plan.spec.linux().as_ref();
    let paths = |list: Option<&Vec<String>>| list.cloned().unwrap_or_default();
    masks::read_only(
        &root,
        &paths(linux.and_then(|l| l.readonly_paths().as_ref())),
    )?;
    masks::hide(
        &root,
        &paths(linux.and_then(|l| l.masked_paths().as_ref())),
        own_dev.as_ref().map(|own| &own.null),
    )?;
    let read_only = plan.spec.root().as_ref().and_then(|root| root.readonly());
    Ok(Built {
        root,
        read_only: read_only.unwrap_or(false),
        own_dev,
    })
}

/// A mount of its own, which pivot_root(2) needs.
fn attach_root(rootfs: &Path) -> Result<OwnedFd, RootError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = step("opening the stacked layers", open_tree(CWD, rootfs, flags))?;
    let private = Change {
        propagation: libc::MS_PRIVATE,
        ..Change::default()
    };
    step("separating the root", mount_attr::change(&tree, private))?;
    step(
        "attaching the root",
        move_mount(
            &tree,
            "",
            CWD,
            rootfs,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        ),
    )?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    step(
        "opening the root",
        rustix::fs::open(rootfs, flags, Mode::empty()),
    )
}

impl Built {
    /// Changes into it. Nothing of the tree before is left in the namespace.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn enter(&self) -> Result<(), RootError> {
        step("entering the root", rustix::process::fchdir(&self.root))?;
        // The old root ends up on top of the new one (pivot_root(2)), and is unmounted.
        step("pivot_root", rustix::process::pivot_root(".", "."))?;
        step(
            "unmounting the old root",
            unmount(".", UnmountFlags::DETACH),
        )?;
        step("entering /", rustix::process::chdir("/"))
    }

    /// Shows a terminal at /dev/console, unless /dev is a volume.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn console(&self, terminal: impl AsFd) -> Result<(), RootError> {
        match &self.own_dev {
            Some(own) => devices::console(own, terminal),
            None => Ok(()),
        }
    }

    /// Makes it read-only if the spec says so, after everything is made in it.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn seal(&self) -> Result<(), RootError> {
        if !self.read_only {
            return Ok(());
        }
        let change = Change {
            set: mount_attr::RDONLY,
            ..Change::default()
        };
        step(
            "making the root read-only",
            mount_attr::change(&self.root, change),
        )
    }
}
