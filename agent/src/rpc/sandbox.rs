//! Calls about the guest as a whole: who it is, its network, its scratch disk.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;

use bulkhead_proto::agent::{BootStep, HelloResponse, SetupSandboxRequest};
use rustix::mount::MountFlags;

use super::agent::Agent;
use super::error::SandboxError;
use crate::container::{ContainerError, cgroup};
use crate::net::{NetError, apply, files, model, sysctl};
use crate::userns::IdMap;
use crate::{blocking, clock, cpus, host, init};

/// The limit of a pod's /dev/shm.
const SHM_BYTES: u64 = 64 << 20;
/// Linux's own limit (HOST_NAME_MAX).
const MAX_HOSTNAME: usize = 64;

/// The answer to Hello.
pub fn hello() -> HelloResponse {
    let steps = init::steps::all()
        .into_iter()
        .map(|(name, ended_ns)| BootStep {
            name: name.to_owned(),
            ended_ns,
        })
        .collect();
    let online = std::thread::available_parallelism().map_or(1, usize::from);
    HelloResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel_release: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        online_cpus: online.try_into().unwrap_or(u32::MAX),
        steps,
    }
}

impl Agent {
    /// Gives the guest its identity.
    ///
    /// # Errors
    /// The first step that fails; the call can be repeated.
    pub(super) async fn setup(&self, mut request: SetupSandboxRequest) -> Result<(), SandboxError> {
        let _alone = self.0.sandbox.lock().await;
        // Validate before anything is changed.
        if request.hostname.len() > MAX_HOSTNAME || request.hostname.contains(['\0', '\n', '/']) {
            return Err(SandboxError::Invalid {
                field: "hostname",
                expected: "at most 64 bytes, one line",
            });
        }
        let network = request
            .network
            .as_ref()
            .map(model::Network::try_from)
            .transpose()?;
        for name in request.sysctls.keys() {
            sysctl::path(name)?;
        }
        let user_namespace = request
            .user_namespace
            .as_ref()
            .map(IdMap::try_from)
            .transpose()
            .map_err(ContainerError::from)?;
        let system = |what| move |error| SandboxError::System { what, error };

        let host = self.containers().paths.host();
        if host.is_none() {
            own_machine(&request)?;
            // On the host the kubelet's own limit is there, on the pod's cgroup.
            cgroup::limit_pids(&self.containers().paths.cgroup_of_pod(), request.pids_limit)?;
        }
        let node_network = host.is_some_and(|pod| pod.network == host::Network::Node);
        if node_network && request.hostname.is_empty() {
            let name = rustix::system::uname();
            request.hostname = name.nodename().to_string_lossy().into_owned();
        }
        if !node_network && !request.hostname.is_empty() {
            rustix::system::sethostname(request.hostname.as_bytes())
                .map_err(system("setting the hostname"))?;
        }
        let directory = self.containers().paths.sandbox();
        mount_shared_files(&directory)?;
        if !request.machine_id.is_empty() {
            files::write_machine_id(&directory.join("machine-id"), &request.machine_id)?;
        }
        tracing::debug!("setup: names");

        if host.is_some_and(|pod| !pod.own_ipc) {
            // POSIX shared memory is part of the host's IPC.
            bind_shm(&directory.join("shm"))?;
        } else {
            mount_shm(&directory.join("shm"))?;
        }
        files::write_hostname(&directory, &request.hostname)?;
        files::write_resolv_conf(&directory, &request.dns.unwrap_or_default())?;
        if node_network {
            files::copy_hosts(Path::new("/etc/hosts"), &directory)?;
        } else {
            write_hosts(&directory, &request.hostname, network.as_ref())?;
        }

        if user_namespace.is_some() && host.is_some() {
            mount_mqueue(&self.containers().paths.mqueue())?;
        }
        if let Some(map) = &user_namespace {
            // The container's root may write these, as everywhere.
            for file in ["hostname", "hosts", "resolv.conf", "shm"] {
                let path = directory.join(file);
                std::os::unix::fs::chown(&path, Some(map.uids.first), Some(map.gids.first))
                    .map_err(|error| SandboxError::File {
                        what: "giving the pod's root",
                        path,
                        error,
                    })?;
            }
        }
        tracing::debug!("setup: files");
        // The rest does not depend on each other; waiting for the disk overlaps with the network.
        let disks = &self.containers().disks;
        let scratch = async {
            if !request.scratch_file.is_empty() {
                disks
                    .mount_scratch_file(&request.scratch_disk, request.scratch_file.into())
                    .await?;
            } else if !request.scratch_disk.is_empty() {
                disks.mount_scratch(&request.scratch_disk).await?;
                tracing::debug!("setup: scratch disk");
            }
            Ok::<_, SandboxError>(())
        };
        // A processor comes up in milliseconds, in which this one can do something else.
        let processors = async {
            if host.is_some() {
                return Ok(());
            }
            blocking::run(move || {
                cpus::online(Path::new(cpus::SYSFS), request.online_cpus)?;
                Ok::<_, SandboxError>(())
            })
            .await?;
            tracing::debug!("setup: processors");
            Ok(())
        };
        let net = async {
            // On the host CNI has done it.
            if let (Some(network), None) = (&network, host) {
                apply::apply(network).await?;
            }
            if !node_network {
                sysctl::set_all(&open_network())?;
            }
            // After the devices have their names, which sysctls may contain.
            sysctl::set_all(&request.sysctls)?;
            tracing::debug!("setup: network");

            Ok(())
        };
        let shared = async {
            match user_namespace {
                Some(map) => self.containers().set_user_namespace(map).await?,
                None if request.shared_pid_namespace => {
                    self.containers().shared_namespaces().await?;
                }
                None => {}
            }
            Ok(())
        };
        futures::try_join!(scratch, processors, net, shared).map(drop)
    }
}

/// What containerd opens to all users of a pod that has a network of its own: every port, and ping
/// (`enable_unprivileged_ports`, `enable_unprivileged_icmp`). Here also in a user namespace, where
/// containerd leaves ping out: the network is not the namespace's, so its root has no rights over it
/// (`CAP_NET_BIND_SERVICE`, `CAP_NET_RAW`), and the range of groups is the guest's or the node's.
fn open_network() -> HashMap<String, String> {
    let open = [
        ("net.ipv4.ip_unprivileged_port_start", "0"),
        ("net.ipv4.ping_group_range", "0 2147483647"),
    ];
    open.map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

fn write_hosts(
    directory: &Path,
    hostname: &str,
    network: Option<&model::Network>,
) -> Result<(), NetError> {
    // The pod is called by the addresses of its own interface, not by those of further networks.
    let addresses: Vec<IpAddr> = network
        .iter()
        .flat_map(|network| network.interfaces.first())
        .flat_map(|interface| &interface.addresses)
        .map(|prefix| prefix.address)
        .collect();
    files::write_hosts(directory, hostname, &addresses)
}

/// What a guest has of its own: the clock, the entropy pool, the machine id.
fn own_machine(request: &SetupSandboxRequest) -> Result<(), SandboxError> {
    // First the clock and the entropy: everything after may stamp times and draw numbers.
    if request.clock_unix_ns > 0 {
        clock::step_realtime(request.clock_unix_ns).map_err(|error| SandboxError::System {
            what: "stepping the clock",
            error,
        })?;
    }
    tracing::debug!("setup: clock");
    if !request.entropy.is_empty() {
        init::entropy::add(&request.entropy).map_err(|error| SandboxError::File {
            what: "adding entropy by",
            path: "/dev/random".into(),
            error,
        })?;
    }
    tracing::debug!("setup: entropy");
    if !request.machine_id.is_empty() {
        files::write_machine_id(Path::new("/etc/machine-id"), &request.machine_id)?;
    }
    Ok(())
}

/// The message queues of a pod on the host, for containers that cannot mount them. A second call
/// changes nothing.
fn mount_mqueue(path: &Path) -> Result<(), SandboxError> {
    if path.exists() {
        return Ok(());
    }
    std::fs::create_dir_all(path).map_err(|error| SandboxError::File {
        what: "making",
        path: path.to_owned(),
        error,
    })?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let mounted = rustix::mount::mount("mqueue", path, "mqueue", flags, None);
    mounted.map_err(|error| SandboxError::System {
        what: "mounting the pod's message queues",
        error,
    })
}

/// The host's /dev/shm, for a pod in the host's IPC namespace.
fn bind_shm(path: &Path) -> Result<(), SandboxError> {
    std::fs::create_dir_all(path).map_err(|error| SandboxError::File {
        what: "making",
        path: path.to_owned(),
        error,
    })?;
    rustix::mount::mount_bind("/dev/shm", path).map_err(|error| SandboxError::System {
        what: "binding the host's /dev/shm",
        error,
    })
}

/// The pod's /dev/shm.
fn mount_shm(path: &Path) -> Result<(), SandboxError> {
    let options = format!("mode=1777,size={SHM_BYTES}");
    mount_tmpfs(path, "shm", &options, "mounting the pod's /dev/shm")
}

/// Where the files are that all containers share and may write: what they write into them must not
/// take the guest's memory, or the node's /run.
fn mount_shared_files(path: &Path) -> Result<(), SandboxError> {
    let options = format!("mode=0755,size={SHARED_FILES_BYTES},nr_inodes=64");
    mount_tmpfs(
        path,
        "sandbox",
        &options,
        "mounting a place for /etc/hosts and the like",
    )
}

fn mount_tmpfs(
    path: &Path,
    name: &str,
    options: &str,
    what: &'static str,
) -> Result<(), SandboxError> {
    std::fs::create_dir_all(path).map_err(|error| SandboxError::File {
        what: "making",
        path: path.to_owned(),
        error,
    })?;
    let data = std::ffi::CString::new(options).unwrap_or_default();
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let mounted = rustix::fs::statfs(path).is_ok_and(|here| {
        path.parent()
            .and_then(|parent| rustix::fs::stat(parent).ok())
            .is_some_and(|above| {
                rustix::fs::stat(path).is_ok_and(|stat| stat.st_dev != above.st_dev)
            })
            && here.f_type == TMPFS_MAGIC
    });
    let result = if mounted {
        rustix::mount::mount_remount(path, flags, data.as_c_str())
    } else {
        rustix::mount::mount(name, path, "tmpfs", flags, Some(data.as_c_str()))
    };
    result.map_err(|error| SandboxError::System { what, error })
}

/// A node's /etc/hosts, which pods on its network have a copy of, can be a long list.
const SHARED_FILES_BYTES: u64 = 16 << 20;
/// linux/magic.h
const TMPFS_MAGIC: i64 = 0x0102_1994;
