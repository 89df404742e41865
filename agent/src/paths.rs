//! Where the agent keeps its things in the guest. Every path below the base is made here, so that
//! no other module joins strings to paths.

use std::path::{Path, PathBuf};

/// The base directory and what is below it.
#[derive(Debug, Clone)]
pub struct Paths {
    base: PathBuf,
    cgroup_root: PathBuf,
}

/// The cgroup, below the root of the hierarchy, under which every container's cgroup is made.
pub const CGROUP_PARENT: &str = "bulkhead";

/// The guest's POSIX message queues, for containers that cannot mount them.
pub const KERNEL_MQUEUE: &str = "/dev/mqueue";

impl Paths {
    /// `base` is `/run/bulkhead` in a guest.
    pub fn new(base: impl Into<PathBuf>) -> Self {
        Self {
            base: base.into(),
            cgroup_root: PathBuf::from("/sys/fs/cgroup"),
        }
    }

    /// Where EROFS layers are mounted, one directory per disk serial.
    pub fn layers(&self) -> PathBuf {
        self.base.join("layers")
    }

    /// The mount of one layer.
    pub fn layer(&self, serial: &str) -> PathBuf {
        self.layers().join(serial)
    }

    /// The mount of a further disk.
    pub fn disk(&self, serial: &str) -> PathBuf {
        self.base.join("disks").join(serial)
    }

    /// Where the scratch disk is mounted: the containers' writable layers.
    pub fn scratch(&self) -> PathBuf {
        self.base.join("scratch")
    }

    /// Files every container of the pod may bind: hostname, hosts, resolv.conf, shm.
    pub fn sandbox(&self) -> PathBuf {
        self.base.join("sandbox")
    }

    /// A mount of sysfs with nothing mounted in it, for containers that cannot mount one.
    pub fn sysfs(&self) -> PathBuf {
        self.base.join("sysfs")
    }

    /// The directory of one container: its bundle, its root file system, its sockets.
    pub fn container(&self, id: &str) -> PathBuf {
        self.containers().join(id)
    }

    /// The directory of all containers; libcontainer keeps its state there too.
    pub fn containers(&self) -> PathBuf {
        self.base.join("containers")
    }

    /// libcontainer's own directories, one per container.
    pub fn runtime_state(&self) -> PathBuf {
        self.base.join("state")
    }

    /// The mount point of the unified hierarchy.
    pub fn cgroup_root(&self) -> &Path {
        &self.cgroup_root
    }

    /// The cgroup of one container.
    pub fn cgroup(&self, id: &str) -> PathBuf {
        self.cgroup_root.join(CGROUP_PARENT).join(id)
    }
}
