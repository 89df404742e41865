//! Disks by virtio-blk serial: waiting for them, mounting image layers and the scratch disk,
//! unmounting and unplugging them. Image layers are shared by containers and counted.

pub mod device;
pub mod error;
pub mod loop_device;
mod mount;
pub mod uevent;
mod wait;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::mount::MountFlags;
use tokio::sync::Mutex;

use self::device::BlockDevice;
pub use self::device::rescan;
pub use self::error::DiskError;
use self::mount::{Filesystem, mount_device, mount_node, unmount};
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
    mounted: Arc<Mutex<HashMap<String, Mounted>>>,
}

/// How long a device may take to appear.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);

impl Disks {
    /// None yet.
    pub fn new(paths: Paths) -> Self {
        Self {
            paths,
            mounted: Arc::default(),
        }
    }

    /// Mounts layers that are not mounted yet and counts one user more for each. The answer is
    /// their mount points in the given order.
    ///
    /// # Errors
    /// If one does not appear or is not EROFS; then none is counted.
    pub async fn acquire_layers(&self, serials: &[String]) -> Result<Vec<PathBuf>, DiskError> {
        self.mount_layers(serials).await?;
        let mut mounted = self.mounted.lock().await;
        let mut targets = Vec::new();
        for serial in serials {
            if let Some(layer) = mounted.get_mut(serial) {
                layer.users += 1;
                targets.push(layer.target.clone());
            }
        }
        Ok(targets)
    }

    /// Counts one user less. The layers stay mounted until [`remove_unused`](Self::remove_unused).
    pub async fn release_layers(&self, serials: &[String]) {
        let mut mounted = self.mounted.lock().await;
        for serial in serials {
            if let Some(layer) = mounted.get_mut(serial) {
                layer.users = layer.users.saturating_sub(1);
            }
        }
    }

    /// Waits for layers' disks and mounts them; those that are mounted already are left alone.
    async fn mount_layers(&self, serials: &[String]) -> Result<(), DiskError> {
        let mut mounted = self.mounted.lock().await;
        let new: Vec<_> = serials
            .iter()
            .filter(|serial| !mounted.contains_key(*serial))
            .cloned()
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        let mut preexisting = HashMap::new();
        let mut wanted = Vec::new();
        for serial in &new {
            device::check_serial(serial)?;
            let target = self.paths.layer(serial);
            if is_filled_directory(&target) {
                // Provided without a disk: an agent outside a VM, in tests.
                preexisting.insert(serial.clone(), target);
            } else {
                wanted.push(serial.clone());
            }
        }
        self.in_guest(&wanted)?;
        let devices = wait_for(&wanted, DEFAULT_DEADLINE).await?;
        tracing::debug!("disks: found");
        for serial in new {
            if mounted.contains_key(&serial) {
                continue;
            }
            if let Some(target) = preexisting.remove(&serial) {
                mounted.insert(
                    serial,
                    Mounted {
                        target,
                        source: Source::Preexisting,
                        users: 0,
                    },
                );
                continue;
            }
            let Some(device) = devices.get(&serial).cloned() else {
                continue;
            };
            let target = self.paths.layer(&serial);
            let (mounting, place) = (device.clone(), target.clone());
            blocking::run(move || mount_device(&mounting, Filesystem::Erofs, place)).await?;
            mounted.insert(
                serial,
                Mounted {
                    target,
                    source: Source::Device(device),
                    users: 0,
                },
            );
        }
        Ok(())
    }

    /// Mounts the scratch disk, at its own place.
    ///
    /// # Errors
    /// If it does not appear in time or is not ext4.
    pub async fn mount_scratch(&self, serial: &str) -> Result<(), DiskError> {
        device::check_serial(serial)?;
        let mut mounted = self.mounted.lock().await;
        if mounted.contains_key(serial) {
            return Ok(());
        }
        self.in_guest(&[serial.to_owned()])?;
        let devices = wait_for(&[serial.to_owned()], DEFAULT_DEADLINE).await?;
        let Some(device) = devices.get(serial).cloned() else {
            return Ok(());
        };
        let target = self.paths.scratch();
        let (mounting, place) = (device.clone(), target.clone());
        blocking::run(move || mount_device(&mounting, Filesystem::Ext4, place)).await?;
        // Counts as used for ever: only the power-off unmounts it.
        mounted.insert(
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
        let mut mounted = self.mounted.lock().await;
        if mounted.contains_key(serial) {
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
        mounted.insert(
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
        let mounted = self.mounted.lock().await;
        serials
            .iter()
            .filter_map(|serial| Some(mounted.get(serial)?.target.clone()))
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

    /// Unmounts and unplugs those that no container uses; the others stay. A missing disk is not
    /// an error.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn remove_unused(&self, serials: &[String]) -> Result<(), DiskError> {
        let mut mounted = self.mounted.lock().await;
        for serial in serials {
            device::check_serial(serial)?;
            let device = match mounted.get(serial) {
                Some(Mounted { users, .. }) if *users > 0 => continue,
                Some(Mounted { target, source, .. }) => {
                    let source = source.clone();
                    if !matches!(source, Source::Preexisting) {
                        let (place, name) = (target.clone(), serial.clone());
                        blocking::run(move || unmount(&name, &place)).await?;
                    }
                    match source {
                        Source::Device(device) => Some(device),
                        Source::File | Source::Preexisting => None,
                    }
                }
                None => None,
            };
            mounted.remove(serial);
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

fn is_filled_directory(path: &Path) -> bool {
    std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some())
}
