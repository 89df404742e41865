//! Volumes in the guest: what the mounts of a container's spec have as their source. Some belong to
//! the pod and stay (the virtio-fs share, file systems in memory, copies of ConfigMaps, sockets),
//! some to a container and go with it (images, anonymous volumes, places for a part of something
//! else).
//!
//! Not here: mounting them in the container, which the launcher does.

pub mod anonymous;
pub mod copied;
pub mod error;
pub mod image;
pub mod memory;
pub mod place;
pub mod prepared;
pub mod remove;
pub mod socket;
pub mod tree;

use std::collections::HashMap;
use std::path::PathBuf;

use bulkhead_proto::agent::{BlockDevice, CreateContainerRequest, volume};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use tokio::sync::Mutex;

use self::copied::Copies;
use self::error::TAG;
pub use self::error::VolumeError;
use self::place::check_name;
use self::prepared::Node;
pub use self::prepared::Prepared;
use self::socket::Sockets;
use crate::blocking;
use crate::disk::{DEFAULT_DEADLINE, Disks};
use crate::paths::Paths;
use crate::userns::IdMap;

/// The pod's volumes.
#[derive(Debug)]
pub struct Volumes {
    paths: Paths,
    /// Copies of volumes that the daemon sends.
    pub copies: Copies,
    sockets: Sockets,
    // Held over each kind of work, so that two containers do not do it twice.
    share: Mutex<bool>,
    memory: Mutex<()>,
    // Nodes of the disks that containers write themselves.
    disks: Mutex<HashMap<String, PathBuf>>,
}

impl Volumes {
    /// None yet.
    pub fn new(paths: Paths) -> Self {
        Self {
            copies: Copies::new(paths.clone()),
            sockets: Sockets::new(paths.clone()),
            paths,
            share: Mutex::default(),
            memory: Mutex::default(),
            disks: Mutex::default(),
        }
    }

    /// Makes everything a container's mounts and devices need; `users` is the pod's user namespace,
    /// through which files' owners are seen. After a failure [`clear`] is due.
    ///
    /// [`clear`]: place::clear
    ///
    /// # Errors
    /// For the first volume that cannot be prepared.
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
                    blocking::run(move || memory::mount(&memory, &at, placed)).await?
                }
                Some(volume::Source::Copied(copied)) => {
                    check_name("copied.name", &copied.name)?;
                    self.copies.path(&copied.name).await?
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
                    blocking::run(work).await?
                }
                Some(volume::Source::Socket(socket)) => {
                    check_name("socket.name", &socket.name)?;
                    self.sockets.listen(socket).await?
                }
                Some(volume::Source::Host(host)) => {
                    let host = host.clone();
                    blocking::run(move || place::of_host(&host, placed)).await?
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
                    blocking::run(move || place::mount_mapped(source, at, &file)).await?
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
        blocking::run(move || {
            place::make_directory(&at)?;
            // Provided without a device: an agent outside a VM, in tests.
            let filled = std::fs::read_dir(&at).is_ok_and(|mut entries| entries.next().is_some());
            if filled {
                return Ok(());
            }
            // With its device nodes, as a volume is on any node: they are this kernel's devices,
            // and the container's device filter says which of them it may open.
            rustix::mount::mount(TAG, &at, "virtiofs", MountFlags::empty(), None).map_err(|error| {
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

    /// Gives a volume in memory another limit.
    ///
    /// # Errors
    /// If no container has it, or more is in it than the limit.
    pub async fn resize_memory(&self, name: &str, bytes: u64) -> Result<(), VolumeError> {
        check_name("name", name)?;
        let _turn = self.memory.lock().await;
        let (name, at) = (name.to_owned(), self.paths.memory(name));
        blocking::run(move || match memory::is_mounted(&at) {
            true => memory::resize(&at, bytes),
            false => Err(VolumeError::NoMemory { name }),
        })
        .await
    }

    /// Forgets disks that are gone.
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
        blocking::run(move || {
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
    /// For what cannot be removed; the rest is removed.
    pub fn clear(paths: &Paths, id: &str) -> Result<(), VolumeError> {
        place::clear(paths, id)
    }
}
