//! The mounts of a container, by the new mount API: each is made detached, gets its attributes, and
//! is attached to an open directory or file of the root.

use std::os::fd::OwnedFd;
use std::path::{Component, Path};

use oci_spec::runtime::Mount;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

use super::detached::{attach, clone};
use super::devices::{self, OwnDev};
use super::error::RootError;
use super::options::{self, Options};
use super::plan::Plan;
use super::resolve::{self, Make};
use crate::mount_attr;

/// What statfs says of a procfs (linux/magic.h).
const PROC_SUPER_MAGIC: i64 = 0x9fa0;
/// What may be mounted in procfs: the files that show a container its share of the machine (lxcfs),
/// and no others.
const IN_PROC: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// A source that was opened: a detached mount, and whether it is a directory.
#[derive(Debug)]
pub struct Source {
    tree: OwnedFd,
    directory: bool,
}

fn options_of(mount: &Mount) -> Options {
    let list = mount.options().as_deref().unwrap_or_default();
    let mut options = options::parse(list.iter().map(String::as_str));
    options.bind |= mount.typ().as_deref() == Some("bind");
    options
}

/// Opens the sources of all bind mounts, in the order of `list`; None for other mounts.
///
/// # Errors
/// [`RootError::Source`].
pub fn open_sources(list: &[Mount], base: &Path) -> Result<Vec<Option<Source>>, RootError> {
    list.iter()
        .map(|mount| {
            let options = options_of(mount);
            if !options.bind {
                return Ok(None);
            }
            let path = mount.source().as_deref().unwrap_or(Path::new(""));
            open_source(path, options.recursive, base)
                .map(Some)
                .map_err(|error| RootError::Source {
                    path: mount.destination().clone(),
                    source_path: path.to_owned(),
                    error,
                })
        })
        .collect()
}

fn open_source(path: &Path, recursive: bool, base: &Path) -> Result<Source, Errno> {
    let source = find_source(path, base)?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&source)?.st_mode);
    Ok(Source {
        tree: clone(&source, recursive)?,
        directory: kind == FileType::Directory,
    })
}

/// Opens a source by its path. Links are followed below `base` alone, and magic links nowhere.
fn find_source(path: &Path, base: &Path) -> Result<OwnedFd, Errno> {
    // On the host a container that writes a directory above could turn a part of the path into a
    // link after the daemon has looked at it.
    let mut resolve = ResolveFlags::NO_MAGICLINKS;
    if !path.starts_with(base) {
        resolve |= ResolveFlags::NO_SYMLINKS;
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::openat2(CWD, path, flags, Mode::empty(), resolve)
}

/// Attaches all mounts, in the order of `list`. Returns the container's own /dev, if it has one; a
/// /dev that is a volume is left alone.
///
/// # Errors
/// The first mount that cannot be made.
pub fn attach_all(
    root: &OwnedFd,
    list: &[Mount],
    sources: Vec<Option<Source>>,
    plan: Plan<'_>,
) -> Result<Option<OwnDev>, RootError> {
    let mut own_dev = None;
    for (mount, source) in list.iter().zip(sources) {
        let options = options_of(mount);
        let at = mount.destination();
        match source {
            Some(source) => {
                if clean(at) == Path::new("/dev") {
                    own_dev = None;
                }
                attach_source(root, at, source, &options)?;
            }
            None => {
                let made = attach_file_system(root, mount, &options)?;
                if clean(at) == Path::new("/dev") && mount.typ().as_deref() == Some("tmpfs") {
                    own_dev = Some(devices::fill(made, plan)?);
                }
            }
        }
    }
    Ok(own_dev)
}

fn clean(path: &Path) -> std::path::PathBuf {
    let names = path.components().filter(|part| *part != Component::CurDir);
    names.collect()
}

fn attach_source(
    root: &OwnedFd,
    at: &Path,
    source: Source,
    options: &Options,
) -> Result<(), RootError> {
    let make = if source.directory {
        Make::Directory
    } else {
        Make::File
    };
    let target = match resolve::open_or_make(root, at, make) {
        Ok(target) => target,
        Err(Errno::NOTDIR) => return Err(in_the_way(root, at)),
        Err(error) => {
            return Err(RootError::Path {
                what: "making the mount point",
                path: at.to_owned(),
                error,
            });
        }
    };
    let failed = |what| {
        move |error| RootError::Path {
            what,
            path: at.to_owned(),
            error,
        }
    };
    refuse_links(root, at, &target, None)?;
    let stat = rustix::fs::fstat(&target).map_err(failed("looking at"))?;
    let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    if directory != source.directory {
        let name = |directory| if directory { "directory" } else { "file" };
        return Err(RootError::Kind {
            path: at.to_owned(),
            has: name(directory),
            is: name(source.directory),
        });
    }
    refuse_in_proc(root, at, &target)?;
    for change in options.changes() {
        mount_attr::change(&source.tree, change)
            .map_err(failed("setting the options of the mount on"))?;
    }
    attach(&source.tree, &target).map_err(failed("mounting on"))
}

/// A link that a container can change could expose what is hidden in procfs and sysfs: whatever is
/// mounted at /proc and /sys, and procfs and sysfs anywhere, need a plain directory.
fn refuse_links(
    root: &OwnedFd,
    at: &Path,
    target: &OwnedFd,
    kind: Option<&str>,
) -> Result<(), RootError> {
    let cleaned = clean(at);
    let of = |name, place| cleaned == Path::new(place) || kind == Some(name);
    let kind = match (of("proc", "/proc"), of("sysfs", "/sys")) {
        (true, _) => "proc",
        (_, true) => "sysfs",
        _ => return Ok(()),
    };
    let failed = |error| RootError::Path {
        what: "looking at",
        path: at.to_owned(),
        error,
    };
    match resolve::open_plain(root, at) {
        Ok(_) => Ok(()),
        Err(Errno::LOOP | Errno::NOTDIR) => {
            let mode = rustix::fs::fstat(target).map_err(failed)?.st_mode;
            if FileType::from_raw_mode(mode) != FileType::Directory {
                // A file there is treated like a file anywhere.
                return Ok(());
            }
            Err(RootError::Linked {
                kind,
                path: at.to_owned(),
            })
        }
        Err(error) => Err(failed(error)),
    }
}

/// Finds the file that a mount point's path leads through.
fn in_the_way(root: &OwnedFd, at: &Path) -> RootError {
    let file = at.ancestors().skip(1).find(|above| {
        let found = resolve::open(root, above, OFlags::PATH).and_then(rustix::fs::fstat);
        found.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) != FileType::Directory)
    });
    RootError::InTheWay {
        path: at.to_owned(),
        at: file.unwrap_or(at).to_owned(),
    }
}

/// Refuses what would be mounted inside procfs, by whatever links.
fn refuse_in_proc(root: &OwnedFd, at: &Path, target: &OwnedFd) -> Result<(), RootError> {
    let found = rustix::fs::fstatfs(target).map_err(|error| RootError::Path {
        what: "looking at",
        path: at.to_owned(),
        error,
    })?;
    let cleaned = clean(at);
    let allowed = found.f_type != PROC_SUPER_MAGIC
        || IN_PROC.iter().any(|allowed| Path::new(allowed) == cleaned)
        || (cleaned == Path::new("/proc") && is_root_of_proc(root, target));
    if allowed {
        return Ok(());
    }
    Err(RootError::InProc(at.to_owned()))
}

/// /proc itself may be replaced, as a hostPath volume of /proc at /proc does.
fn is_root_of_proc(root: &OwnedFd, target: &OwnedFd) -> bool {
    let number = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
    resolve::open_plain(root, Path::new("/proc"))
        .and_then(|proc| Ok(number(&proc)? == number(target)?))
        .unwrap_or(false)
}

fn attach_file_system(
    root: &OwnedFd,
    mount: &Mount,
    options: &Options,
) -> Result<OwnedFd, RootError> {
    let at = mount.destination();
    let kind = match mount.typ().as_deref().unwrap_or_default() {
        // Guests and nodes have version 2 only.
        "cgroup" => "cgroup2",
        kind => kind,
    };
    let path_error = |what| {
        move |error| RootError::Path {
            what,
            path: at.to_owned(),
            error,
        }
    };
    let target = resolve::open_or_make(root, at, Make::Directory)
        .map_err(path_error("making the mount point"))?;
    refuse_links(root, at, &target, Some(kind))?;
    refuse_in_proc(root, at, &target)?;
    let made = make(kind, mount.source().as_deref(), options).map_err(|failure| {
        RootError::FileSystem {
            kind: kind.to_owned(),
            path: at.to_owned(),
            step: failure.step,
            error: failure.error,
            log: failure.log,
        }
    })?;
    for change in options.changes() {
        mount_attr::change(&made, change).map_err(path_error("setting the options of"))?;
    }
    attach(&made, &target).map_err(path_error("mounting on"))?;
    Ok(made)
}

struct Refused {
    step: String,
    error: Errno,
    log: String,
}

/// A new instance of a file system, detached.
fn make(kind: &str, source: Option<&Path>, options: &Options) -> Result<OwnedFd, Refused> {
    let refused = |step: &str, error, log| Refused {
        step: step.to_owned(),
        error,
        log,
    };
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|error| refused("opening it", error, String::new()))?;
    let done = |step: &str, result: Result<(), Errno>| {
        result.map_err(|error| refused(step, error, crate::container::rootfs::kernel_log(&context)))
    };
    if let Some(source) = source {
        done("naming", fsconfig_set_string(&context, "source", source))?;
    }
    for option in &options.data {
        let set = match option.split_once('=') {
            Some((key, value)) => fsconfig_set_string(&context, key, value),
            None => fsconfig_set_flag(&context, option.as_str()),
        };
        done(option, set)?;
    }
    done("creating", fsconfig_create(&context))?;
    fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
    .map_err(|error| {
        refused(
            "mounting",
            error,
            crate::container::rootfs::kernel_log(&context),
        )
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn nothing_is_mounted_inside_procfs_whatever_the_path_says() {
        let open = |path: &str| OwnedFd::from(fs::File::open(path).unwrap());
        let root = open("/");
        let refused = |at: &str, target: &str| {
            let error = refuse_in_proc(&root, Path::new(at), &open(target)).err();
            error.is_some_and(|error| matches!(error, RootError::InProc(_)))
        };
        assert!(!refused("/data", "/usr"));
        assert!(!refused("/proc/cpuinfo", "/proc/cpuinfo"));
        assert!(!refused("/proc", "/proc"));
        assert!(refused("/proc/self", "/proc/self"));
        // By links of the image.
        assert!(refused("/dev", "/proc/sys/kernel"));
        assert!(refused("/data", "/proc"));
        assert!(refused("/data", "/proc/cpuinfo"));
    }

    #[test]
    fn a_source_is_opened_without_following_links() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        fs::create_dir(dir.join("real")).unwrap();
        fs::write(dir.join("real/file"), "").unwrap();
        symlink("real", dir.join("link")).unwrap();
        symlink(dir.join("real/file"), dir.join("whole")).unwrap();
        let elsewhere = Path::new("/run/bulkhead-agent");
        let open = |name: &str, base: &Path| find_source(&dir.join(name), base).map(drop);
        for good in ["real", "real/file"] {
            assert_eq!(open(good, elsewhere), Ok(()), "{good}");
        }
        // Whether the last name of the path is the link or one above it.
        for linked in ["link", "link/file", "whole"] {
            assert_eq!(open(linked, elsewhere), Err(Errno::LOOP), "{linked}");
            // What the agent has made for the pod itself.
            assert_eq!(open(linked, &dir), Ok(()), "{linked}");
        }
        let magic = Path::new("/proc/self/cwd");
        for base in [elsewhere, Path::new("/proc")] {
            assert_eq!(find_source(magic, base).map(drop), Err(Errno::LOOP));
        }
    }

    #[test]
    fn mounts_at_proc_and_sys_need_plain_directories() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("other/below")).unwrap();
        fs::create_dir(dir.path().join("proc")).unwrap();
        symlink("other", dir.path().join("sys")).unwrap();
        symlink("other", dir.path().join("data")).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let root = OwnedFd::from(fs::File::open(dir.path()).unwrap());
        let refused = |at: &str, kind| {
            let target = resolve::open(&root, Path::new(at), OFlags::PATH).unwrap();
            refuse_links(&root, Path::new(at), &target, kind).err()
        };
        for good in ["/proc", "/proc/", "/data", "/sys/below", "/file"] {
            assert!(refused(good, None).is_none(), "{good}");
        }
        // A file is not a link; what cannot be mounted on it is refused with another message.
        fs::remove_dir(dir.path().join("proc")).unwrap();
        fs::write(dir.path().join("proc"), "").unwrap();
        assert!(refused("/proc", None).is_none());
        assert!(refused("/data/below", Some("tmpfs")).is_none());
        for kind in ["proc", "sysfs"] {
            let error = refused("/data/below", Some(kind)).unwrap();
            assert!(matches!(error, RootError::Linked { .. }), "{error}");
        }
        for bad in ["/sys", "//sys/", "/./sys"] {
            let error = refused(bad, None).unwrap();
            assert!(matches!(error, RootError::Linked { .. }), "{bad}: {error}");
        }
    }
}
