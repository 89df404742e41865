//! Volumes in the guest: what the mounts of a container's spec have as their source. Some belong to
//! the pod and stay (the virtio-fs share, file systems in memory, copies of ConfigMaps, sockets),
//! some to a container and go with it (images, anonymous volumes, places for a part of something
//! else).
//!
//! Not here: mounting them in the container, which the launcher does.

pub mod anonymous;
pub mod copied;
pub mod image;
pub mod memory;
pub mod place;
pub mod remove;
pub mod socket;
pub mod tree;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bulkhead_proto::agent::{BlockDevice, CreateContainerRequest, Ownership, volume};
use oci_spec::runtime::{
    LinuxDeviceBuilder, LinuxDeviceCgroupBuilder, LinuxDeviceType, Mount, MountBuilder, Spec,
};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use tokio::sync::Mutex;

use crate::container::spec::SpecError;
use crate::disk::{DEFAULT_DEADLINE, DiskError, Disks};
use crate::huge_pages::HugePagesError;
use crate::paths::Paths;
use crate::userns::IdMap;

/// The virtio-fs device's tag.
const TAG: &str = "bulkhead";

/// What can go wrong with a volume.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// Something in the request that cannot be.
    #[error("{field} {value:?}: {allowed}")]
    Invalid {
        /// Which field.
        field: &'static str,
        /// What it has.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// The guest has no virtio-fs device.
    #[error(
        "mounting the pod's shared directory (virtio-fs {TAG:?}) failed: {error}; was the VM \
         started without its file system device?"
    )]
    Share {
        /// The kernel's answer.
        error: io::Error,
    },
    /// Huge pages.
    #[error(transparent)]
    HugePages(#[from] HugePagesError),
    /// A part of a volume that is not there.
    #[error("{part:?} of {what} cannot be mounted: {error}")]
    Part {
        /// Of what.
        what: String,
        /// Which part.
        part: String,
        /// Why.
        error: io::Error,
    },
    /// A file or a mount.
    #[error("{what} {} failed: {error}", path.display())]
    File {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// An anonymous volume.
    #[error(transparent)]
    Anonymous(#[from] anonymous::AnonymousError),
    /// A disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// An image's files.
    #[error(transparent)]
    Rootfs(#[from] crate::container::rootfs::RootfsError),
    /// The blocking thread went away.
    #[error("the thread that worked on volumes ended early; the agent is shutting down")]
    Cancelled,
}

/// What volumes leave for the container's spec.
#[derive(Debug, Default)]
pub struct Prepared {
    /// By the destination of a mount: its source.
    sources: HashMap<PathBuf, PathBuf>,
    /// Device nodes.
    devices: Vec<Node>,
    /// Anonymous volumes: the destination of a mount, and where its source is still to be made.
    anonymous: Vec<(PathBuf, PathBuf)>,
}

#[derive(Debug)]
struct Node {
    path: PathBuf,
    /// Where it is in the guest, for a node outside of the container's /dev.
    placed: Option<PathBuf>,
    number: (u32, u32),
    permissions: String,
    ownership: Ownership,
}

/// The pod's volumes.
#[derive(Debug)]
pub struct Volumes {
    paths: Paths,
    // Held over each kind of work, so that two containers do not do it twice.
    share: Mutex<bool>,
    memory: Mutex<()>,
    copied: Mutex<copied::Copies>,
    sockets: Mutex<socket::Sockets>,
    // Nodes of the disks that containers write themselves.
    disks: Mutex<HashMap<String, PathBuf>>,
}

impl Volumes {
    /// None yet.
    pub fn new(paths: Paths) -> Self {
        Self {
            paths,
            share: Mutex::default(),
            memory: Mutex::default(),
            copied: Mutex::default(),
            sockets: Mutex::default(),
            disks: Mutex::default(),
        }
    }

    /// Makes everything a container's mounts and devices need; `users` is the pod's user namespace,
    /// through which files' owners are seen. After a failure [`clear`] is due.
    ///
    /// [`clear`]: place::clear
    ///
    /// # Errors
    /// The first volume that cannot be had.
    pub async fn prepare(
        &self,
        request: &CreateContainerRequest,
        disks: &Disks,
        users: Option<&(PathBuf, IdMap)>,
    ) -> Result<Prepared, VolumeError> {
        let id = &request.container_id;
        let mut prepared = Prepared::default();
        for (number, volume) in request.volumes.iter().enumerate() {
            let placed = self.paths.placed(id).join(number.to_string());
            let source = match &volume.source {
                Some(volume::Source::Shared(shared)) => {
                    check_name("shared.name", &shared.name)?;
                    self.mount_share().await?;
                    self.paths.share().join(&shared.name)
                }
                Some(volume::Source::Memory(memory)) => {
                    check_name("memory.name", &memory.name)?;
                    let _turn = self.memory.lock().await;
                    let (memory, at) = (memory.clone(), self.paths.memory(&memory.name));
                    blocking(move || memory::mount(&memory, &at, placed)).await?
                }
                Some(volume::Source::Copied(copied)) => {
                    check_name("copied.name", &copied.name)?;
                    self.copied(&copied.name).await?
                }
                Some(volume::Source::Image(image)) => {
                    let root = self.paths.images(id).join(number.to_string());
                    let scratch = self
                        .paths
                        .scratch()
                        .join(id)
                        .join(format!("image-{number}"));
                    let layers = disks.paths_of(&image.layers).await;
                    let (image, users) = (image.clone(), users.cloned());
                    let work = move || {
                        image::mount(&image, &layers, users.as_ref(), root, scratch, placed)
                    };
                    blocking(work).await?
                }
                Some(volume::Source::Socket(socket)) => {
                    check_name("socket.name", &socket.name)?;
                    self.socket(socket).await?
                }
                Some(volume::Source::Host(host)) => {
                    let host = host.clone();
                    blocking(move || place::of_host(&host, placed)).await?
                }
                Some(volume::Source::Anonymous(_)) => {
                    let place = self.paths.scratch().join(id);
                    let place = place.join(format!("volume-{number}"));
                    let destination = PathBuf::from(&volume.destination);
                    prepared.anonymous.push((destination, place));
                    continue;
                }
                None => {
                    return Err(VolumeError::Invalid {
                        field: "volumes.source",
                        value: volume.destination.clone(),
                        allowed: "it must be set",
                    });
                }
            };
            let owned = matches!(
                volume.source,
                Some(
                    volume::Source::Shared(_)
                        | volume::Source::Memory(_)
                        | volume::Source::Copied(_)
                )
            );
            let source = match users {
                Some((file, _)) if owned => {
                    let at = self.paths.placed(id).join(format!("mapped-{number}"));
                    let file = file.clone();
                    blocking(move || place::mount_mapped(source, at, &file)).await?
                }
                _ => source,
            };
            prepared
                .sources
                .insert(PathBuf::from(&volume.destination), source);
        }
        self.devices(id, &request.block_devices, disks, &mut prepared)
            .await?;
        Ok(prepared)
    }

    async fn mount_share(&self) -> Result<(), VolumeError> {
        let mut mounted = self.share.lock().await;
        if *mounted {
            return Ok(());
        }
        let at = self.paths.share();
        blocking(move || {
            place::make_directory(&at)?;
            // Put there without a device: an agent outside a VM.
            let filled = std::fs::read_dir(&at).is_ok_and(|mut entries| entries.next().is_some());
            if filled {
                return Ok(());
            }
            // Device nodes in it are the host's, and mean nothing here.
            rustix::mount::mount(TAG, &at, "virtiofs", MountFlags::NODEV, None).map_err(|error| {
                VolumeError::Share {
                    error: error.into(),
                }
            })
        })
        .await?;
        *mounted = true;
        Ok(())
    }

    async fn devices(
        &self,
        id: &str,
        wanted: &[BlockDevice],
        disks: &Disks,
        prepared: &mut Prepared,
    ) -> Result<(), VolumeError> {
        if wanted.is_empty() {
            return Ok(());
        }
        let serials: Vec<_> = wanted.iter().map(|one| one.serial.clone()).collect();
        let found = disks.wait(&serials, DEFAULT_DEADLINE).await?;
        for (number, one) in wanted.iter().enumerate() {
            let Some(device) = found.get(&one.serial) else {
                continue;
            };
            let node = device.node();
            let stat = rustix::fs::stat(&node).map_err(|error| VolumeError::File {
                what: "looking at",
                path: node.clone(),
                error: error.into(),
            })?;
            let number_of = (
                rustix::fs::major(stat.st_rdev),
                rustix::fs::minor(stat.st_rdev),
            );
            let ownership = one.ownership.unwrap_or_default();
            let path = PathBuf::from(&one.path);
            let mut placed = None;
            if !path.starts_with("/dev") {
                let at = self.paths.device(id, number);
                place::make_node(&at, number_of, ownership)?;
                placed = Some(at);
            }
            self.disks.lock().await.insert(one.serial.clone(), node);
            prepared.devices.push(Node {
                path,
                placed,
                number: number_of,
                permissions: one.permissions.clone(),
                ownership,
            });
        }
        Ok(())
    }

    /// Disks that are gone.
    pub async fn forget_disks(&self, serials: &[String]) {
        let mut disks = self.disks.lock().await;
        disks.retain(|serial, _| !serials.contains(serial));
    }

    /// Writes out what containers have written to the share and to disks.
    ///
    /// # Errors
    /// What the host or a disk refused.
    pub async fn sync(&self) -> Result<(), VolumeError> {
        let share = self.share.lock().await.then(|| self.paths.share());
        let disks: Vec<_> = self.disks.lock().await.values().cloned().collect();
        blocking(move || {
            let failed = |path: &PathBuf| {
                let path = path.clone();
                move |error: Errno| VolumeError::File {
                    what: "writing out",
                    path,
                    error: error.into(),
                }
            };
            if let Some(path) = share {
                let fd = place::open(&path).map_err(failed(&path))?;
                rustix::fs::syncfs(fd).map_err(failed(&path))?;
            }
            for path in disks {
                match place::open(&path) {
                    Ok(fd) => rustix::fs::fsync(fd).map_err(failed(&path))?,
                    Err(Errno::NOENT | Errno::NXIO) => {}
                    Err(error) => return Err(failed(&path)(error)),
                }
            }
            Ok(())
        })
        .await
    }

    /// Removes what was made for one container alone. Blocks.
    ///
    /// # Errors
    /// What would not go; the rest is gone.
    pub fn clear(paths: &Paths, id: &str) -> Result<(), VolumeError> {
        place::clear(paths, id)
    }
}

impl Prepared {
    /// Makes the anonymous volumes, whose content is that of the container's `root`: it must be
    /// mounted, and not yet have anything mounted in it. Owners in it are those of a user namespace,
    /// if there is a `map`. Blocks.
    ///
    /// # Errors
    /// The first that cannot be made. What was made is in the container's scratch directory, and
    /// goes with it.
    pub fn make_anonymous(&mut self, root: &Path, map: Option<&IdMap>) -> Result<(), VolumeError> {
        for (destination, place) in std::mem::take(&mut self.anonymous) {
            let source = anonymous::make(root, &destination, place, map)?;
            self.sources.insert(destination, source);
        }
        Ok(())
    }

    /// Puts sources and devices into the spec.
    ///
    /// # Errors
    /// For a destination the spec has no mount at.
    pub fn apply(self, spec: &mut Spec) -> Result<(), SpecError> {
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        for (destination, source) in self.sources {
            let mount = mounts
                .iter_mut()
                .find(|mount| *mount.destination() == destination)
                .ok_or_else(|| {
                    SpecError::Invalid(format!("it has no mount at {}", destination.display()))
                })?;
            mount.set_source(Some(source));
        }
        for node in self.devices {
            add_node(spec, &mut mounts, node)?;
        }
        spec.set_mounts(Some(mounts));
        Ok(())
    }
}

fn add_node(spec: &mut Spec, mounts: &mut Vec<Mount>, node: Node) -> Result<(), SpecError> {
    let (major, minor) = (i64::from(node.number.0), i64::from(node.number.1));
    let mut linux = spec.linux().clone().unwrap_or_default();
    let mut resources = linux.resources().clone().unwrap_or_default();
    let mut rules = resources.devices().clone().unwrap_or_default();
    rules.push(
        LinuxDeviceCgroupBuilder::default()
            .allow(true)
            .typ(LinuxDeviceType::B)
            .major(major)
            .minor(minor)
            .access(node.permissions)
            .build()?,
    );
    resources.set_devices(Some(rules));
    linux.set_resources(Some(resources));
    match node.placed {
        Some(source) => mounts.push(
            MountBuilder::default()
                .destination(node.path)
                .typ("bind")
                .source(source)
                .options(vec!["bind".to_owned(), "rprivate".to_owned()])
                .build()?,
        ),
        None => {
            let mut devices = linux.devices().clone().unwrap_or_default();
            devices.push(
                LinuxDeviceBuilder::default()
                    .path(node.path)
                    .typ(LinuxDeviceType::B)
                    .major(major)
                    .minor(minor)
                    .file_mode(node.ownership.mode & 0o7777)
                    .uid(node.ownership.uid)
                    .gid(node.ownership.gid)
                    .build()?,
            );
            linux.set_devices(Some(devices));
        }
    }
    spec.set_linux(Some(linux));
    Ok(())
}

/// Refuses what cannot be a name; it becomes part of paths.
fn check_name(field: &'static str, name: &str) -> Result<(), VolumeError> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if (1..=64).contains(&name.len()) && name.chars().all(good) && !name.chars().all(|c| c == '.') {
        return Ok(());
    }
    Err(VolumeError::Invalid {
        field,
        value: name.chars().take(100).collect(),
        allowed: "1 to 64 characters of A-Z a-z 0-9 . _ -",
    })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| VolumeError::Cancelled)?
}

/// Shared by the calls that need it.
pub type Shared = Arc<Volumes>;

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        serde_json::from_str(
            r#"{"ociVersion":"1.2.0","mounts":[{"destination":"/data","type":"bind",
                "source":"x","options":["rbind"]}],
                "linux":{"resources":{"devices":[{"allow":false,"access":"rwm"}]}}}"#,
        )
        .unwrap()
    }

    #[test]
    fn sources_and_devices_become_part_of_the_spec() {
        let node = |path: &str, placed: Option<&str>| Node {
            path: path.into(),
            placed: placed.map(Into::into),
            number: (253, 16),
            permissions: "rw".to_owned(),
            ownership: Ownership {
                mode: 0o60660,
                uid: 1,
                gid: 2,
            },
        };
        let prepared = Prepared {
            sources: HashMap::from([("/data".into(), "/run/x".into())]),
            devices: vec![node("/dev/xvda", None), node("/disk", Some("/dev/y"))],
            anonymous: Vec::new(),
        };
        let mut spec = spec();
        prepared.apply(&mut spec).unwrap();
        let mounts = spec.mounts().clone().unwrap();
        assert_eq!(mounts[0].source(), &Some(PathBuf::from("/run/x")));
        assert_eq!(mounts[1].destination(), &PathBuf::from("/disk"));
        let linux = spec.linux().clone().unwrap();
        let devices = linux.devices().clone().unwrap();
        assert_eq!(devices.len(), 1);
        assert_eq!(devices[0].file_mode(), Some(0o660));
        let rules = linux
            .resources()
            .clone()
            .unwrap()
            .devices()
            .clone()
            .unwrap();
        assert_eq!(rules.len(), 3);
    }

    #[test]
    fn a_source_without_a_mount_is_refused() {
        let prepared = Prepared {
            sources: HashMap::from([("/other".into(), "/run/x".into())]),
            devices: Vec::new(),
            anonymous: Vec::new(),
        };
        assert!(prepared.apply(&mut spec()).is_err());
    }

    #[test]
    fn names_that_could_be_paths_are_refused() {
        for bad in ["", ".", "..", "a/b", "a b", &"x".repeat(65)] {
            assert!(check_name("x", bad).is_err(), "{bad:?}");
        }
        assert!(check_name("x", "12ab-0").is_ok());
    }
}
