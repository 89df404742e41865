//! The guest's own file tree.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::Path;

use rustix::mount::{MountFlags, mount, mount_move};

use super::error::InitError;

struct Mount {
    what: &'static str,
    target: &'static str,
    flags: MountFlags,
    data: &'static str,
}

const STRICT: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

// In the order they are made: later targets lie in earlier mounts.
const MOUNTS: &[Mount] = &[
    Mount {
        what: "proc",
        target: "/proc",
        flags: STRICT,
        data: "",
    },
    Mount {
        what: "sysfs",
        target: "/sys",
        flags: STRICT,
        data: "",
    },
    Mount {
        what: "devtmpfs",
        target: "/dev",
        flags: MountFlags::NOSUID,
        data: "mode=0755",
    },
    Mount {
        what: "devpts",
        target: "/dev/pts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        data: "gid=5,mode=0620,ptmxmode=0666",
    },
    Mount {
        what: "tmpfs",
        target: "/dev/shm",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        data: "mode=1777",
    },
    Mount {
        what: "mqueue",
        target: "/dev/mqueue",
        flags: STRICT,
        data: "",
    },
    Mount {
        what: "tmpfs",
        target: "/run",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        data: "mode=0755",
    },
    Mount {
        what: "tmpfs",
        target: "/tmp",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        data: "mode=1777",
    },
    // nsdelegate: a container with its own cgroup namespace cannot reach above its own cgroup.
    // memory_recursiveprot: memory.min and memory.low mean the whole subtree, as the kubelet
    // expects.
    Mount {
        what: "cgroup2",
        target: "/sys/fs/cgroup",
        flags: STRICT,
        data: "nsdelegate,memory_recursiveprot",
    },
    Mount {
        what: "bpf",
        target: "/sys/fs/bpf",
        flags: STRICT,
        data: "mode=0700",
    },
];

/// Puts a tmpfs over the initramfs. pivot_root(2) refuses a caller whose root is the initial one,
/// and every container pivots.
pub(super) fn replace_root() -> Result<(), InitError> {
    let target = Path::new("/newroot");
    make_directory(target)?;
    mount_one("tmpfs", target, MountFlags::empty(), "mode=0755")?;
    rustix::process::chdir(target).map_err(InitError::Root)?;
    mount_move(".", "/").map_err(InitError::Root)?;
    rustix::process::chroot(".").map_err(InitError::Root)?;
    rustix::process::chdir("/").map_err(InitError::Root)
}

/// Mounts everything a guest needs, and the links programs expect in /dev.
pub(super) fn mount_all() -> Result<(), InitError> {
    for one in MOUNTS {
        let target = Path::new(one.target);
        make_directory(target)?;
        mount_one(one.what, target, one.flags, one.data)?;
    }
    let links = [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
        ("pts/ptmx", "/dev/ptmx"),
    ];
    for (to, link) in links {
        // devtmpfs makes a ptmx device of its own; it works as well.
        match symlink(to, link) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(InitError::Make {
                    path: link.into(),
                    error,
                });
            }
            _ => {}
        }
    }
    Ok(())
}

fn make_directory(path: &Path) -> Result<(), InitError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .map_err(|error| InitError::Make {
            path: path.to_owned(),
            error,
        })
}

fn mount_one(
    what: &'static str,
    target: &Path,
    flags: MountFlags,
    data: &str,
) -> Result<(), InitError> {
    let data = CString::new(data).unwrap_or_default();
    mount(what, target, what, flags, Some(data.as_c_str())).map_err(|error| InitError::Mount {
        what,
        target: target.to_owned(),
        error,
    })
}
