//! Where the agent's files are. Every path below the base is built here, so that no other module
//! joins strings to paths.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::host::{HostError, Pod};

/// The base directory and what is below it.
#[derive(Debug, Clone)]
pub struct Paths {
    base: PathBuf,
    cgroup_root: PathBuf,
    cgroup_parent: PathBuf,
    host: Option<Arc<Pod>>,
}

/// The cgroup of a guest, below the root of the hierarchy, under which every container's cgroup is
/// made.
pub const CGROUP_PARENT: &str = "bulkhead";
/// The base in a guest, which specs name.
pub const GUEST_BASE: &str = "/run/bulkhead";

impl Paths {
    /// `base` is `/run/bulkhead` in a guest.
    pub fn new(base: impl Into<PathBuf>) -> Self {
        Self {
            base: base.into(),
            cgroup_root: PathBuf::from("/sys/fs/cgroup"),
            cgroup_parent: CGROUP_PARENT.into(),
            host: None,
        }
    }

    /// Of a pod on the host.
    ///
    /// # Errors
    /// If its cgroup is not in the hierarchy.
    pub fn on_host(pod: Arc<Pod>) -> Result<Self, HostError> {
        Ok(Self {
            base: pod.directory.clone(),
            cgroup_root: pod.cgroup_root.clone(),
            cgroup_parent: pod.cgroup_below_root()?.to_owned(),
            host: Some(pod),
        })
    }

    /// The base directory: only the agent creates names below it.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// The pod, if the agent runs on the host.
    pub fn host(&self) -> Option<&Pod> {
        self.host.as_deref()
    }

    /// Where something really is that a spec names as in a guest: the files all containers share.
    pub fn really(&self, named: &Path) -> PathBuf {
        let shared = Path::new(GUEST_BASE).join("sandbox");
        match named.strip_prefix(shared) {
            Ok(below) if below.as_os_str().is_empty() => self.sandbox(),
            Ok(below) => self.sandbox().join(below),
            Err(_) => named.to_owned(),
        }
    }

    /// The cgroup under which every container's is made.
    pub fn containers_cgroup(&self) -> PathBuf {
        self.cgroup_root.join(&self.cgroup_parent)
    }

    /// Where EROFS layers are mounted, one directory per disk serial.
    pub fn layers(&self) -> PathBuf {
        self.base.join("layers")
    }

    /// The mount of one layer.
    pub fn layer(&self, serial: &str) -> PathBuf {
        self.layers().join(serial)
    }

    /// Where the scratch disk is mounted: the containers' writable layers.
    pub fn scratch(&self) -> PathBuf {
        self.base.join("scratch")
    }

    /// Files every container of the pod may bind: hostname, hosts, resolv.conf, shm.
    pub fn sandbox(&self) -> PathBuf {
        self.base.join("sandbox")
    }

    /// The pod's POSIX message queues, for containers that cannot mount them.
    pub fn mqueue(&self) -> PathBuf {
        match self.host {
            None => PathBuf::from("/dev/mqueue"),
            // There it is the host's.
            Some(_) => self.base.join("mqueue"),
        }
    }

    /// A mount of sysfs with nothing mounted in it, for containers that cannot mount one.
    pub fn sysfs(&self) -> PathBuf {
        self.base.join("sysfs")
    }

    /// Where the virtio-fs device with the host's volumes is mounted.
    pub fn share(&self) -> PathBuf {
        self.base.join("share")
    }

    fn volumes(&self) -> PathBuf {
        self.base.join("volumes")
    }

    /// A volume in memory.
    pub fn memory(&self, name: &str) -> PathBuf {
        self.volumes().join("memory").join(name)
    }

    /// A volume that follows the host's by being copied.
    pub fn copied(&self, name: &str) -> PathBuf {
        self.volumes().join("copied").join(name)
    }

    /// A socket that leads to one of the host's.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.volumes().join("sockets").join(name)
    }

    /// Where parts of volumes are mounted for one container.
    pub fn placed(&self, id: &str) -> PathBuf {
        self.volumes().join("placed").join(id)
    }

    /// Where one container's image volumes are stacked.
    pub fn images(&self, id: &str) -> PathBuf {
        self.volumes().join("images").join(id)
    }

    /// Device nodes that are mounted outside of a container's /dev. In the guest's /dev, because
    /// nodes on other mounts are dead.
    pub fn devices(&self) -> PathBuf {
        PathBuf::from("/dev/bulkhead")
    }

    /// One of them.
    pub fn device(&self, id: &str, number: usize) -> PathBuf {
        self.devices().join(format!("{id}-{number}"))
    }

    /// The directory of one container: its bundle, its root file system, its sockets.
    pub fn container(&self, id: &str) -> PathBuf {
        self.containers().join(id)
    }

    /// The directory of all containers.
    pub fn containers(&self) -> PathBuf {
        self.base.join("containers")
    }

    /// The mount point of the unified hierarchy.
    pub fn cgroup_root(&self) -> &Path {
        &self.cgroup_root
    }

    /// The cgroup below which the containers' are.
    pub fn cgroup_of_pod(&self) -> PathBuf {
        self.cgroup_root.join(&self.cgroup_parent)
    }

    /// The cgroup of one container.
    pub fn cgroup(&self, id: &str) -> PathBuf {
        self.cgroup_of_pod().join(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_a_host_only_the_shared_files_are_remapped() {
        let pod = Pod(bulkhead_contract::host::Pod {
            id: "p".into(),
            directory: "/r/p/host".into(),
            socket: "/r/p/host/agent.sock".into(),
            ready: "/r/p/host/ready.sock".into(),
            exit: "/r/p/host/exit.json".into(),
            cgroup_root: "/sys/fs/cgroup".into(),
            cgroup: "/sys/fs/cgroup/k/b-p".into(),
            network: crate::host::Network::Node,
            own_ipc: false,
        });
        let paths = Paths::on_host(Arc::new(pod)).unwrap();
        let really = |path| paths.really(Path::new(path)).display().to_string();
        assert_eq!(really("/run/bulkhead/sandbox/shm"), "/r/p/host/sandbox/shm");
        assert_eq!(really("/run/bulkhead/sandboxes"), "/run/bulkhead/sandboxes");
        assert_eq!(really("/var/lib"), "/var/lib");
        assert_eq!(paths.cgroup("c"), Path::new("/sys/fs/cgroup/k/b-p/c"));
        let guest = Paths::new(GUEST_BASE);
        let same = Path::new("/run/bulkhead/sandbox/hosts");
        assert_eq!(guest.really(same), same);
    }
}
