//! Device nodes: those every container has, and those it was given. Nothing is created in a /dev
//! that is a volume.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxDeviceType;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::detached;
use super::error::RootError;
use super::plan::Plan;
use super::resolve::{self, Make};

/// Links in /dev (OCI runtime spec, config-linux, default devices).
const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
];

/// Nodes in /dev (the same place).
const NODES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

struct Node {
    path: PathBuf,
    kind: FileType,
    number: (u32, u32),
    mode: u32,
    owner: (u32, u32),
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(Errno) -> RootError {
    move |error| RootError::Path {
        what,
        path: path.to_owned(),
        error,
    }
}

/// A /dev that is not a volume.
#[derive(Debug)]
pub struct OwnDev {
    dev: OwnedFd,
    /// Its null device, whatever is mounted there later.
    pub null: OwnedFd,
}

/// Fills a new file system for /dev with links and default nodes, by its own descriptor: it does
/// not matter where the image's /dev leads.
pub(super) fn fill(dev: OwnedFd, plan: Plan<'_>) -> Result<OwnDev, RootError> {
    for (name, target) in LINKS {
        rustix::fs::symlinkat(target, &dev, name)
            .map_err(failed("making the link in /dev:", Path::new(name)))?;
    }
    for (name, major, minor) in NODES {
        let node = Node {
            path: Path::new("/dev").join(name),
            kind: FileType::CharacterDevice,
            number: (major, minor),
            mode: 0o666,
            owner: (0, 0),
        };
        place(&dev, Path::new(name), &node, plan.own_users)
            .map_err(failed("making the device node", &node.path))?;
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let null = rustix::fs::openat(&dev, "null", flags, Mode::empty())
        .map_err(failed("opening the device node", Path::new("/dev/null")))?;
    Ok(OwnDev { dev, null })
}

/// Makes the nodes the container was given. Those below /dev are made relative to its own descriptor,
/// because a volume may by now cover the place the image links /dev to.
pub(super) fn make(
    root: &OwnedFd,
    plan: Plan<'_>,
    own_dev: Option<&OwnDev>,
) -> Result<(), RootError> {
    let devices = plan
        .spec
        .linux()
        .as_ref()
        .and_then(|l| l.devices().as_ref());
    for device in devices.into_iter().flatten() {
        let path = device.path();
        let (top, below) = match (path.strip_prefix("/dev"), own_dev) {
            (Ok(below), Some(own)) => (&own.dev, below),
            (Ok(_), None) => continue,
            (Err(_), _) => (root, path.as_path()),
        };
        let number = |value: i64| u32::try_from(value).map_err(|_| Errno::INVAL);
        let node = || -> Result<Node, Errno> {
            Ok(Node {
                path: path.clone(),
                kind: match device.typ() {
                    LinuxDeviceType::B => FileType::BlockDevice,
                    LinuxDeviceType::P => FileType::Fifo,
                    _ => FileType::CharacterDevice,
                },
                number: (number(device.major())?, number(device.minor())?),
                mode: device.file_mode().unwrap_or(0o666) & 0o7777,
                owner: (device.uid().unwrap_or(0), device.gid().unwrap_or(0)),
            })
        };
        let steps = || -> Result<(), Errno> {
            let node = node()?;
            let (Some(above), Some(name)) = (below.parent(), below.file_name()) else {
                return Err(Errno::INVAL);
            };
            let parent = resolve::open_or_make(top, above, Make::Directory)?;
            match place(&parent, Path::new(name), &node, plan.own_users) {
                // The image's own, or a default one: the container was given this one.
                Err(Errno::EXIST) => {
                    rustix::fs::unlinkat(&parent, name, AtFlags::empty())?;
                    place(&parent, Path::new(name), &node, plan.own_users)
                }
                other => other,
            }
        };
        steps().map_err(failed("making the device node", path))?;
    }
    Ok(())
}

/// Makes one node at a name that is free.
fn place(parent: &OwnedFd, name: &Path, node: &Node, own_users: bool) -> Result<(), Errno> {
    if own_users {
        return bind(parent, name, node);
    }
    let (major, minor) = node.number;
    let mode = Mode::from_raw_mode(node.mode);
    rustix::fs::mknodat(
        parent,
        name,
        node.kind,
        mode,
        rustix::fs::makedev(major, minor),
    )?;
    let owner = (Uid::from_raw(node.owner.0), Gid::from_raw(node.owner.1));
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(parent, name, Some(owner.0), Some(owner.1), flags)
}

/// Device nodes cannot be made in a user namespace: the agent's own of the same name is
/// bind-mounted, if it is the same device.
fn bind(parent: &OwnedFd, name: &Path, node: &Node) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let source = rustix::fs::open(&node.path, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&source)?;
    let number = (
        rustix::fs::major(stat.st_rdev),
        rustix::fs::minor(stat.st_rdev),
    );
    if FileType::from_raw_mode(stat.st_mode) != node.kind || number != node.number {
        return Err(Errno::NODEV);
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    drop(rustix::fs::openat(
        parent,
        name,
        flags,
        Mode::from_raw_mode(0o666),
    )?);
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    detached::attach(detached::clone(&source, false)?, &target)
}

/// Shows a terminal as `console` in the container's own /dev.
pub(super) fn console(own: &OwnDev, terminal: impl AsFd) -> Result<(), RootError> {
    let steps = || -> Result<(), Errno> {
        let target = resolve::open_or_make(&own.dev, Path::new("console"), Make::File)?;
        detached::attach(detached::clone(terminal, false)?, &target)
    };
    steps().map_err(failed("showing the terminal at", Path::new("/dev/console")))
}
