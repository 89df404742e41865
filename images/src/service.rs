//! The image service: pull, list, find, remove, hold.

use std::{error::Error, path::PathBuf, sync::Arc};

use bulkhead_records::Database;
use bytes::Bytes;
use futures::Stream;

use crate::{
    archive::{Export, Importer},
    disk_usage::{Meter, Usage},
    error::{ImagesError, SharedError},
    expiry,
    manifest::SERIAL_DIGITS,
    pull::{LayerSnapshot, PullSettings, Puller},
    reference::ImageName,
    registry::{Credentials, PullSecret, Registry, RetryPolicy},
    store::{ImageRecord, LayerRecord, Store},
};

/// A layer as a disk of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerDisk {
    /// The EROFS file.
    pub path: PathBuf,
    /// The disk's serial, by which the agent finds it.
    pub serial: String,
    /// Directories it has without an entry of their own.
    pub implicit_dirs: Vec<Vec<u8>>,
}

/// Where the image service works and how.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The directory of layer files.
    pub layers_dir: PathBuf,
    /// The directory of the pods' writable disks, for ImageFsInfo.
    pub pods_dir: PathBuf,
    /// The registry hosts' configuration.
    pub hosts_dir: PathBuf,
    /// How often and how long registries are tried.
    pub retry: RetryPolicy,
    /// Limits of pulls.
    pub pull: PullSettings,
}

/// The image service.
#[derive(Debug)]
pub struct Images {
    store: Arc<Store>,
    puller: Arc<Puller>,
    importer: Importer,
    pods_dir: PathBuf,
    image_meter: Arc<Meter>,
    pods_meter: Arc<Meter>,
}

impl Images {
    /// Opens the store. Blocks. In a tokio runtime it begins to remove what unfinished pulls leave
    /// when its time is up.
    ///
    /// # Errors
    /// The directory or the records cannot be used.
    pub fn open(settings: Settings, database: &Database) -> Result<Self, ImagesError> {
        let store = Store::open(settings.layers_dir, database, settings.pull.keep_parts)?;
        expiry::spawn(&store);
        let registry = Arc::new(Registry::new(settings.hosts_dir, settings.retry));
        Ok(Self {
            importer: Importer::new(Arc::clone(&store), settings.pull.clone()),
            puller: Puller::new(Arc::clone(&store), registry, settings.pull),
            store,
            pods_dir: settings.pods_dir,
            image_meter: Arc::default(),
            pods_meter: Arc::default(),
        })
    }

    /// Pulls an image and gives back its record, whose id is CRI's `image_ref`.
    pub async fn pull(
        &self,
        reference: &str,
        secret: Option<&PullSecret>,
    ) -> Result<Arc<ImageRecord>, SharedError> {
        let name = image_name(reference)?;
        let credentials = Credentials::of(secret).map_err(|source| ImagesError::Auth {
            image: name.to_string(),
            source,
        })?;
        let result = self.puller.pull(name, credentials).await;
        self.image_meter.forget();
        result
    }

    /// Makes the images of an archive (`docker save`, OCI layout; packed or not) images of this
    /// node, by `name` if that is given and the archive has one image only.
    ///
    /// # Errors
    /// As of a pull, and [`ImagesError::Archive`]. Images before one that fails are here.
    pub async fn import<E: Error + Send + Sync + 'static>(
        &self,
        archive: impl Stream<Item = Result<Bytes, E>> + Send,
        name: Option<&str>,
    ) -> Result<Vec<Arc<ImageRecord>>, ImagesError> {
        let name = name.map(image_name).transpose()?;
        let result = self.importer.import(archive, name).await;
        self.image_meter.forget();
        result
    }

    /// Begins an archive of images, by any of their names.
    ///
    /// # Errors
    /// NotFound; an image by a release that did not keep what is needed.
    pub fn export(&self, references: &[String]) -> Result<Export, ImagesError> {
        Export::new(&self.store, references)
    }

    /// How far the pull of this image is: one entry per layer; `None` if there is no such pull.
    pub fn progress(&self, reference: &str) -> Option<Vec<LayerSnapshot>> {
        let name = ImageName::parse(reference).ok()?;
        Some(self.puller.progress(&name)?.snapshot())
    }

    /// All images.
    pub fn list(&self) -> Vec<Arc<ImageRecord>> {
        self.store.list()
    }

    /// Finds an image by tag, digest, id or the beginning of an id.
    pub fn find(&self, reference: &str) -> Result<Option<Arc<ImageRecord>>, ImagesError> {
        self.store.find(reference)
    }

    /// The image with this id, even one that was removed while a container holds it.
    pub fn by_id(&self, id: &str) -> Option<Arc<ImageRecord>> {
        self.store.by_id(id)
    }

    /// Removes an image by any of its names, all names at once. Nothing there is fine.
    pub async fn remove(&self, reference: &str) -> Result<(), ImagesError> {
        let result = self.store.remove(reference).await;
        self.image_meter.forget();
        result
    }

    /// Holds an image for a container: its layers stay until [`Self::release`], whatever else
    /// happens, and whatever restarts. NotFound if it is not here. Holding again is fine.
    pub async fn hold(
        &self,
        holder: &str,
        reference: &str,
    ) -> Result<Arc<ImageRecord>, ImagesError> {
        self.store.hold(holder, reference).await
    }

    /// Ends a container's hold. No such hold is fine.
    pub async fn release(&self, holder: &str) -> Result<(), ImagesError> {
        let result = self.store.release(holder).await;
        self.image_meter.forget();
        result
    }

    /// Who holds images: after a restart the daemon releases those that it does not know.
    pub fn holders(&self) -> Vec<String> {
        self.store.holders()
    }

    /// The disks of an image, lowest layer first, for a pod.
    pub fn disks(&self, image: &ImageRecord) -> Vec<LayerDisk> {
        image
            .layers
            .iter()
            .map(|layer| LayerDisk {
                path: self.store.layer_path(&layer.diff_id),
                serial: serial(layer),
                implicit_dirs: layer.implicit_dirs.clone(),
            })
            .collect()
    }

    /// Disk use of the images, and of the pods' writable disks.
    pub async fn usage(&self) -> Result<(Usage, Usage), ImagesError> {
        let (layers_dir, pods_dir) = (self.store.layers_dir().to_owned(), self.pods_dir.clone());
        let (images, pods) = (Arc::clone(&self.image_meter), Arc::clone(&self.pods_meter));
        tokio::task::spawn_blocking(move || {
            std::fs::create_dir_all(&pods_dir).map_err(|source| ImagesError::Disk {
                action: "make the directory",
                path: pods_dir.clone(),
                source,
            })?;
            Ok((images.usage(&layers_dir)?, pods.usage(&pods_dir)?))
        })
        .await
        .unwrap_or(Err(ImagesError::Ending {
            what: "measuring disk use",
        }))
    }
}

/// The serial of a layer's disk: `l` and the first hex digits of its diff_id, 20 characters.
pub fn serial(layer: &LayerRecord) -> String {
    let digits = layer.diff_id.hex().chars().take(SERIAL_DIGITS);
    std::iter::once('l').chain(digits).collect()
}

fn image_name(reference: &str) -> Result<ImageName, ImagesError> {
    if reference.is_empty() {
        return Err(ImagesError::NoName);
    }
    ImageName::parse(reference).map_err(|source| ImagesError::Name {
        given: reference.chars().take(300).collect(),
        source,
    })
}
