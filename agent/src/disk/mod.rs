//! Disks by virtio-blk serial: waiting for them, mounting image layers and the scratch disk,
//! unmounting and unplugging them. Image layers are shared by containers and counted; a disk is one
//! layer, or several (`joined`).

pub mod device;
pub mod error;
mod joined;
pub mod loop_device;
mod mount;
mod partition;
pub mod uevent;
mod wait;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bulkhead_proto::agent::LayerPlace;
use rustix::mount::MountFlags;
use tokio::sync::{Mutex, OwnedMutexGuard};

use self::device::BlockDevice;
pub use self::device::rescan;
pub use self::error::DiskError;
use self::joined::{Joined, Part};
use self::mount::{Filesystem, mount_device, mount_node, unmount};
use self::partition::Range;
use self::wait::wait_for;
use crate::blocking;
use crate::paths::Paths;

#[derive(Debug)]
struct Mounted {
    target: PathBuf,
    source: Source,
    users: usize,
}

/// Where a mounted file system comes from.
#[derive(Debug, Clone)]
enum Source {
    /// A disk, which can be unplugged.
    Device(BlockDevice),
    /// A part of the disk with this serial, which is unplugged as a whole.
    Part(String),
    /// A file on the host, whose loop device goes with the mount.
    File,
    /// It was there before, and is left alone.
    Preexisting,
}

/// The disks the agent knows.
#[derive(Debug, Clone)]
pub struct Disks {
    paths: Paths,
    // Held while mounting, so that two containers of one image do not mount a layer twice.
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    /// By the layer's serial, or the disk's.
    mounted: HashMap<String, Mounted>,
    /// Disks that are several layers, by serial.
    joined: HashMap<String, Joined>,
}

/// How long a device may take to appear.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);

impl Disks {
    /// None yet.
    pub fn new(paths: Paths) -> Self {
        Self {
            paths,
            known: Arc::default(),
        }
    }

    /// Mounts layers that are not mounted yet and counts one user more for each; `places` says which of
    /// them are parts of disks. The answer is their mount points in the given order.
    ///
    /// # Errors
    /// If one does not appear or is not EROFS; then none is counted.
    pub async fn acquire_layers(
        &self,
        serials: &[String],
        places: &[LayerPlace],
    ) -> Result<Vec<PathBuf>, DiskError> {
        let mut known = self.mount_layers(serials, places).await?;
        let mut targets = Vec::new();
        for serial in serials {
            if let Some(layer) = known.mounted.get_mut(serial) {
                layer.users += 1;
                targets.push(layer.target.clone());
            }
        }
        Ok(targets)
    }

    /// Counts one user less. The layers stay mounted until [`remove_unused`](Self::remove_unused).
    pub async fn release_layers(&self, serials: &[String]) {
        let mut known = self.known.lock().await;
        for serial in serials {
            if let Some(layer) = known.mounted.get_mut(serial) {
                layer.users = layer.users.saturating_sub(1);
            }
        }
    }

    /// Waits for layers' disks and mounts them; those that are mounted already are left alone.
    async fn mount_layers(
        &self,
        serials: &[String],
        places: &[LayerPlace],
    ) -> Result<OwnedMutexGuard<Known>, DiskError> {
        let mut known = Arc::clone(&self.known).lock_owned().await;
        let parts = joined::parts(places)?;
        let mut new: Vec<(String, Option<Part>)> = Vec::new();
        let mut wanted = Vec::new();
        for serial in serials {
            if known.mounted.contains_key(serial) || new.iter().any(|(other, _)| other == serial) {
                continue;
            }
            device::check_serial(serial)?;
            let target = self.paths.layer(serial);
            if is_filled_directory(&target) {
                // Provided without a disk: an agent outside a VM, in tests.
                known.note(serial.clone(), target, Source::Preexisting);
                continue;
            }
            let part = parts.get(serial.as_str()).cloned();
            let disk = part.as_ref().map_or(serial, |part| &part.disk);
            if !known.joined.contains_key(disk) && !wanted.contains(disk) {
                wanted.push(disk.clone());
            }
            new.push((serial.clone(), part));
        }
        if new.is_empty() {
            return Ok(known);
        }
        self.in_guest(&wanted)?;
        let devices = wait_for(&wanted, DEFAULT_DEADLINE).await?;
        tracing::debug!("disks: found");
        let paths = self.paths.clone();
        // With the lock: a caller that goes away leaves nothing half known.
        let mount = move || {
            mount_new(&mut known, &paths, new, devices)?;
            Ok::<_, DiskError>(known)
        };
        blocking::run(mount).await
    }

    /// Mounts the scratch disk, at its own place.
    ///
    /// # Errors
    /// If it does not appear in time or is not ext4.
    pub async fn mount_scratch(&self, serial: &str) -> Result<(), DiskError> {
        device::check_serial(serial)?;
        let mut known = self.known.lock().await;
        if known.mounted.contains_key(serial) {
            return Ok(());
        }
        self.in_guest(&[serial.to_owned()])?;
        let devices = wait_for(&[serial.to_owned()], DEFAULT_DEADLINE).await?;
        let Some(device) = devices.get(serial).cloned() else {
            return Ok(());
        };
        let target = self.paths.scratch();
        let (name, node, place) = (serial.to_owned(), device.node(), target.clone());
        blocking::run(move || mount_device(&name, &node, Filesystem::Ext4, place)).await?;
        // Counts as used for ever: only the power-off unmounts it.
        known.mounted.insert(
            serial.to_owned(),
            Mounted {
                target,
                source: Source::Device(device),
                users: 1,
            },
        );
        Ok(())
    }

    /// Mounts the layer in a file, under a serial, like a disk. One that is mounted already is left
    /// alone.
    ///
    /// # Errors
    /// In a guest, which has no files of the host; when the file cannot be mounted.
    pub async fn mount_layer_file(&self, serial: &str, file: PathBuf) -> Result<(), DiskError> {
        let target = self.paths.layer(serial);
        self.mount_file_at(serial, file, Filesystem::Erofs, target, 0)
            .await
    }

    /// Mounts the scratch disk from a file, at its own place.
    ///
    /// # Errors
    /// As [`mount_layer_file`](Self::mount_layer_file).
    pub async fn mount_scratch_file(&self, serial: &str, file: PathBuf) -> Result<(), DiskError> {
        // Counts as used for ever, like the disk.
        self.mount_file_at(serial, file, Filesystem::Ext4, self.paths.scratch(), 1)
            .await
    }

    async fn mount_file_at(
        &self,
        serial: &str,
        file: PathBuf,
        filesystem: Filesystem,
        target: PathBuf,
        users: usize,
    ) -> Result<(), DiskError> {
        device::check_serial(serial)?;
        if self.paths.host().is_none() {
            return Err(DiskError::NotOnHost {
                serial: serial.to_owned(),
            });
        }
        let mut known = self.known.lock().await;
        if known.mounted.contains_key(serial) {
            return Ok(());
        }
        let (name, place) = (serial.to_owned(), target.clone());
        blocking::run(move || {
            let failed = |error| DiskError::Mount {
                serial: name.clone(),
                device: file.display().to_string(),
                filesystem: filesystem.name(),
                target: place.clone(),
                error,
            };
            let read_only = filesystem.flags().contains(MountFlags::RDONLY);
            let device = loop_device::Loop::attach(&file, read_only).map_err(failed)?;
            mount_node(device.node(), filesystem, &place).map_err(failed)
        })
        .await?;
        let source = Source::File;
        known.mounted.insert(
            serial.to_owned(),
            Mounted {
                target,
                source,
                users,
            },
        );
        Ok(())
    }

    /// Waits until raw disks are there, and gives them by serial.
    ///
    /// # Errors
    /// If one does not appear in time.
    pub async fn wait(
        &self,
        serials: &[String],
        deadline: Duration,
    ) -> Result<HashMap<String, BlockDevice>, DiskError> {
        for serial in serials {
            device::check_serial(serial)?;
        }
        self.in_guest(serials)?;
        wait_for(serials, deadline).await
    }

    /// Where layers are mounted, in the given order; those that are not are left out.
    pub async fn paths_of(&self, serials: &[String]) -> Vec<PathBuf> {
        let known = self.known.lock().await;
        serials
            .iter()
            .filter_map(|serial| Some(known.mounted.get(serial)?.target.clone()))
            .collect()
    }

    /// Refuses to wait for disks on a host, whose disks are not the pod's.
    fn in_guest(&self, serials: &[String]) -> Result<(), DiskError> {
        if serials.is_empty() || self.paths.host().is_none() {
            return Ok(());
        }
        Err(DiskError::NoDevices {
            serials: serials.to_vec(),
        })
    }

    /// Unmounts layers that are parts of disks and that no container uses; the others stay.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn unmount_unused(&self, layers: &[String]) -> Result<(), DiskError> {
        let mut known = Arc::clone(&self.known).lock_owned().await;
        let (layers, paths) = (layers.to_vec(), self.paths.clone());
        let unmount_all = move || {
            for layer in layers {
                let free = known.mounted.get(&layer).is_some_and(|mounted| {
                    mounted.users == 0 && matches!(mounted.source, Source::Part(_))
                });
                if free {
                    unmount(&layer, &paths.layer(&layer))?;
                    known.mounted.remove(&layer);
                }
            }
            Ok(())
        };
        blocking::run(unmount_all).await
    }

    /// Unmounts and unplugs those that no container uses; the others stay. A missing disk is not
    /// an error.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn remove_unused(&self, serials: &[String]) -> Result<(), DiskError> {
        let mut known = self.known.lock().await;
        for serial in serials {
            device::check_serial(serial)?;
            let device = match known.mounted.get(serial) {
                Some(Mounted { users, .. }) if *users > 0 => continue,
                Some(Mounted { target, source, .. }) => {
                    let source = source.clone();
                    if !matches!(source, Source::Preexisting) {
                        let (place, name) = (target.clone(), serial.clone());
                        blocking::run(move || unmount(&name, &place)).await?;
                    }
                    match source {
                        Source::Device(device) => Some(device),
                        Source::Part(_) | Source::File | Source::Preexisting => None,
                    }
                }
                None if known.has_layer_of(serial) => continue,
                None => known.joined.remove(serial).map(|joined| joined.device),
            };
            known.mounted.remove(serial);
            if self.paths.host().is_some() {
                // The host's own disks are never unplugged.
                continue;
            }
            let name = serial.clone();
            blocking::run(move || {
                let device = match device {
                    Some(device) => Some(device),
                    None => device::find(std::slice::from_ref(&name))?.remove(&name),
                };
                device.map_or(Ok(()), |device| device.unplug(&name))
            })
            .await?;
        }
        Ok(())
    }
}

impl Known {
    /// A layer is mounted, and nobody uses it yet.
    fn note(&mut self, serial: String, target: PathBuf, source: Source) {
        let mounted = Mounted {
            target,
            source,
            users: 0,
        };
        self.mounted.insert(serial, mounted);
    }

    /// Whether a layer is mounted that is a part of this disk.
    fn has_layer_of(&self, disk: &str) -> bool {
        let on_it = |m: &Mounted| matches!(&m.source, Source::Part(of) if of == disk);
        self.mounted.values().any(on_it)
    }
}

/// Mounts layers that are disks or parts of disks. Blocks.
fn mount_new(
    known: &mut Known,
    paths: &Paths,
    new: Vec<(String, Option<Part>)>,
    mut devices: HashMap<String, BlockDevice>,
) -> Result<(), DiskError> {
    let mut ranges: HashMap<String, Vec<Range>> = HashMap::new();
    for part in new.iter().filter_map(|(_, part)| part.as_ref()) {
        if let Some(device) = devices.remove(&part.disk) {
            let joined = Joined::new(device);
            known.joined.insert(part.disk.clone(), joined);
        }
        ranges
            .entry(part.disk.clone())
            .or_default()
            .push(part.range);
    }
    for (disk, ranges) in ranges {
        if let Some(joined) = known.joined.get_mut(&disk) {
            joined.make_partitions(&ranges)?;
        }
    }
    tracing::debug!("disks: parts are there");
    for (serial, part) in new {
        let found = match part {
            Some(Part { disk, range }) => {
                let joined = known.joined.get(&disk);
                let node = joined.and_then(|joined| joined.node(range));
                node.map(|node| (node, Source::Part(disk)))
            }
            None => {
                let device = devices.remove(&serial);
                device.map(|device| (device.node(), Source::Device(device)))
            }
        };
        // Each was waited for.
        if let Some((node, source)) = found {
            let target = paths.layer(&serial);
            mount_device(&serial, &node, Filesystem::Erofs, target.clone())?;
            known.note(serial, target, source);
        }
    }
    Ok(())
}

fn is_filled_directory(path: &Path) -> bool {
    std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some())
}
