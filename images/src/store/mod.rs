//! The content-addressed store: one EROFS file per layer, and the records that say whose it is.
//!
//! A layer's file appears in one rename when it is whole, an image's record when all its layers
//! are there; so neither is ever half. A file goes when no image's record has it, no pull leases
//! it, and no unfinished pull was about it lately. Holds by containers keep the record of a
//! removed image. Changes run to their end even if the caller is dropped.

mod free;
mod lookup;
mod records;

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use bulkhead_common::lock;
use bulkhead_records::{Database, Table};
use tokio::runtime::Handle;

pub(crate) use self::records::now;
pub use self::records::{FileInfo, HoldRecord, ImageRecord, LayerRecord, PartRecord};
use crate::{digest::Digest, error::ImagesError, layer::Description};

/// The store. Cheap to share.
#[derive(Debug)]
pub struct Store {
    layers_dir: PathBuf,
    images: Table<ImageRecord>,
    holds: Table<HoldRecord>,
    parts: Table<PartRecord>,
    /// Layers that running pulls count on, and how many do.
    leases: Mutex<HashMap<String, usize>>,
    /// How long a finished layer of an unfinished pull is kept for the next try.
    keep_parts: Duration,
    /// Held over each read-change-write of several records.
    writer: tokio::sync::Mutex<()>,
}

/// A running pull counts on a layer: its file is not removed meanwhile.
#[derive(Debug)]
pub struct Lease {
    store: Arc<Store>,
    layer: String,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut leases = lock(&self.store.leases);
        if let Some(count) = leases.get_mut(&self.layer) {
            *count -= 1;
            if *count > 0 {
                return;
            }
            leases.remove(&self.layer);
        }
        drop(leases);
        // What was removed meanwhile goes now. Nearly always somebody has it.
        if !self.store.is_wanted(&self.layer) {
            free_in_background(&self.store, std::mem::take(&mut self.layer));
        }
    }
}

impl Store {
    /// Opens the store and sweeps: temporary files, files without a record, images whose files
    /// are gone. Blocks.
    /// A layer of an unfinished pull is kept for `keep_parts`.
    pub fn open(
        layers_dir: PathBuf,
        database: &Database,
        keep_parts: Duration,
    ) -> Result<Arc<Self>, ImagesError> {
        fs::create_dir_all(&layers_dir).map_err(|source| ImagesError::Disk {
            action: "make the directory",
            path: layers_dir.clone(),
            source,
        })?;
        let store = Self {
            layers_dir,
            images: Table::open(database)?,
            holds: Table::open(database)?,
            parts: Table::open(database)?,
            leases: Mutex::default(),
            keep_parts,
            writer: tokio::sync::Mutex::default(),
        };
        store.sweep()?;
        Ok(Arc::new(store))
    }

    fn sweep(&self) -> Result<(), ImagesError> {
        let held: HashSet<_> = self
            .holds
            .list()
            .iter()
            .map(|hold| hold.image.clone())
            .collect();
        let mut gone = Vec::new();
        for image in self.images.list() {
            let whole = image.layers.iter().all(|layer| {
                fs::metadata(self.layer_path(&layer.diff_id))
                    .is_ok_and(|meta| meta.is_file() && meta.len() == layer.file_size)
            });
            if !whole {
                tracing::warn!(
                    image = %image.id, tags = ?image.repo_tags,
                    "a layer file of this image is missing or damaged; the image is forgotten and \
                     must be pulled again"
                );
            }
            if !whole || (!image.listed && !held.contains(&image.id)) {
                gone.push(image.id.clone());
            }
        }
        self.images.batch_blocking(Vec::new(), gone)?;
        let expired: Vec<_> = self
            .parts
            .list()
            .iter()
            .filter(|part| {
                self.is_expired(part) || !self.layers_dir.join(file_name(&part.layer)).exists()
            })
            .map(|part| part.layer.clone())
            .collect();
        self.parts.batch_blocking(Vec::new(), expired)?;

        let known = self.known_layers();
        let failed = |action, path: &Path, source| ImagesError::Disk {
            action,
            path: path.into(),
            source,
        };
        let dir = &self.layers_dir;
        let mut adopted = Vec::new();
        for entry in fs::read_dir(dir).map_err(|e| failed("list the directory", dir, e))? {
            let path = entry
                .map_err(|e| failed("list the directory", dir, e))?
                .path();
            let layer = path
                .file_name()
                .and_then(|name| name.to_str())
                .and_then(|name| name.strip_suffix(".erofs"));
            if layer.is_some_and(|layer| known.contains(layer)) {
                continue;
            }
            if let Some(layer) = layer
                && describes_itself(&path, layer)
            {
                tracing::info!(path = %path.display(), "no record has this layer; it is kept for a pull");
                adopted.push(PartRecord {
                    layer: layer.to_owned(),
                    wanted_at: now(),
                    opaque_root: false,
                    implicit_dirs: Vec::new(),
                });
                continue;
            }
            tracing::info!(path = %path.display(), "a file that no image has is removed");
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "it cannot be removed");
            }
        }
        Ok(self.parts.batch_blocking(adopted, Vec::new())?)
    }

    /// Layers that some record has.
    fn known_layers(&self) -> HashSet<String> {
        let images = self.images.list();
        let of_images = images.iter().flat_map(|image| &image.layers);
        let mut known: HashSet<_> = of_images
            .map(|layer| layer.diff_id.hex().to_owned())
            .collect();
        known.extend(self.parts.list().iter().map(|part| part.layer.clone()));
        known
    }

    /// How long a finished layer of an unfinished pull is kept.
    pub fn keeps_parts_for(&self) -> Duration {
        self.keep_parts
    }

    /// Whether a record has this layer.
    fn is_wanted(&self, layer: &str) -> bool {
        self.parts.get(layer).is_some() || self.is_used(layer)
    }

    fn is_expired(&self, part: &PartRecord) -> bool {
        // A clock that was set back must not keep parts for ever.
        now().abs_diff(part.wanted_at) > self.keep_parts.as_secs()
    }

    fn is_used(&self, layer: &str) -> bool {
        let images = self.images.list();
        images
            .iter()
            .flat_map(|image| &image.layers)
            .any(|other| other.diff_id.hex() == layer)
    }

    /// Where layers are.
    pub fn layers_dir(&self) -> &Path {
        &self.layers_dir
    }

    /// The file of a layer, whether it is there or not.
    pub fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.layers_dir.join(file_name(diff_id.hex()))
    }

    /// The images of this node.
    pub fn list(&self) -> Vec<Arc<ImageRecord>> {
        let mut images = self.images.list();
        images.retain(|image| image.listed);
        images
    }

    /// Finds an image by id, unique beginning of the id, tag or digest reference.
    pub fn find(&self, reference: &str) -> Result<Option<Arc<ImageRecord>>, ImagesError> {
        lookup::find(&self.list(), reference)
    }

    /// The image with this id, even a removed one that a container still holds.
    pub fn by_id(&self, id: &str) -> Option<Arc<ImageRecord>> {
        self.images.get(id)
    }

    /// Keeps a layer's file from being removed.
    pub fn lease(self: &Arc<Self>, diff_id: &Digest) -> Lease {
        let layer = diff_id.hex().to_owned();
        let mut leases = lock(&self.leases);
        *leases.entry(layer.clone()).or_default() += 1;
        drop(leases);
        Lease {
            store: Arc::clone(self),
            layer,
        }
    }

    /// A leased layer's file, if it is there: a file with that name is whole. Blocks.
    pub fn layer(&self, lease: &Lease) -> Option<FileInfo> {
        let path = self.layers_dir.join(file_name(&lease.layer));
        let meta = fs::metadata(&path).ok().filter(fs::Metadata::is_file)?;
        let size = meta.len();
        let images = self.images.list();
        let of_image = images
            .iter()
            .flat_map(|image| &image.layers)
            .find(|layer| layer.diff_id.hex() == lease.layer);
        let (opaque_root, implicit_dirs) = match of_image {
            Some(layer) if layer.file_size == size => {
                (layer.opaque_root, layer.implicit_dirs.clone())
            }
            Some(_) => return None,
            None => {
                let part = self.parts.get(&lease.layer)?;
                match Description::read(&path) {
                    Some(said) => (said.opaque_root, said.implicit_dirs),
                    None => (part.opaque_root, part.implicit_dirs.clone()),
                }
            }
        };
        Some(FileInfo {
            size,
            opaque_root,
            implicit_dirs,
        })
    }

    /// Says, before their files are made, that a pull is about to make them. What is known of one
    /// that another pull has finished stays known.
    pub async fn expect_layers(
        &self,
        leases: impl Iterator<Item = &Lease>,
    ) -> Result<(), ImagesError> {
        let _writer = self.writer.lock().await;
        let part = |lease: &Lease| {
            let known = self.parts.get(&lease.layer);
            PartRecord {
                layer: lease.layer.clone(),
                wanted_at: now(),
                opaque_root: known.as_ref().is_some_and(|known| known.opaque_root),
                implicit_dirs: known
                    .map(|known| known.implicit_dirs.clone())
                    .unwrap_or_default(),
            }
        };
        Ok(self
            .parts
            .batch(leases.map(part).collect(), Vec::new())
            .await?)
    }

    /// Says that an expected layer's file is about to get its name: it is kept from now on for as
    /// long as layers of unfinished pulls are. Blocks: not for async threads.
    pub fn finishing(&self, diff_id: &Digest) -> Result<(), ImagesError> {
        let _writer = self.writer.blocking_lock();
        let part = PartRecord {
            layer: diff_id.hex().to_owned(),
            wanted_at: now(),
            opaque_root: false,
            implicit_dirs: Vec::new(),
        };
        Ok(self.parts.batch_blocking(vec![part], Vec::new())?)
    }

    /// Makes an image, whose layers are all there and leased, an image of this node. Its tags are
    /// taken from the images that had them.
    pub async fn commit(
        self: &Arc<Self>,
        image: ImageRecord,
    ) -> Result<Arc<ImageRecord>, ImagesError> {
        let store = Arc::clone(self);
        detached("recording the image", async move {
            let _writer = store.writer.lock().await;
            let mut puts = Vec::new();
            for other in store.images.list() {
                let loses = other
                    .repo_tags
                    .iter()
                    .any(|tag| image.repo_tags.contains(tag));
                if other.id != image.id && loses {
                    let mut other = ImageRecord::clone(&other);
                    other.repo_tags.retain(|tag| !image.repo_tags.contains(tag));
                    puts.push(other);
                }
            }
            let mut image = image;
            if let Some(old) = store.images.get(&image.id) {
                image.pulled_at = old.pulled_at;
                if old.listed {
                    image.repo_tags.extend(old.repo_tags.iter().cloned());
                    image.repo_digests.extend(old.repo_digests.iter().cloned());
                }
            }
            for names in [&mut image.repo_tags, &mut image.repo_digests] {
                names.sort();
                names.dedup();
            }
            let id = image.id.clone();
            let parts = image
                .layers
                .iter()
                .map(|layer| layer.diff_id.hex().to_owned())
                .collect();
            puts.push(image);
            store.images.batch(puts, Vec::new()).await?;
            // Not one transaction with the above: a part that a crash leaves is only kept longer.
            store.parts.batch(Vec::new(), parts).await?;
            store
                .images
                .get(&id)
                .ok_or(ImagesError::NotFound { image: id })
        })
        .await
    }

    /// Removes an image by any of its names, with all its names. Nothing there is fine.
    pub async fn remove(self: &Arc<Self>, reference: &str) -> Result<(), ImagesError> {
        let (store, reference) = (Arc::clone(self), reference.to_owned());
        detached("removing the image", async move {
            let writer = store.writer.lock().await;
            let Some(image) = store.find(&reference)? else {
                return Ok(());
            };
            let held = store.holds.list().iter().any(|hold| hold.image == image.id);
            tracing::info!(image = %image.id, tags = ?image.repo_tags, held, "image removed");
            if held {
                let mut image = ImageRecord::clone(&image);
                image.listed = false;
                image.repo_tags.clear();
                image.repo_digests.clear();
                store.images.put(image).await?;
                return Ok(());
            }
            store.images.remove(&image.id).await?;
            drop(writer);
            store
                .free_layers(image.layers.iter().map(|layer| layer.diff_id.hex()))
                .await
        })
        .await
    }

    /// Holds an image for `holder` (a container's id): its layers stay until [`Self::release`],
    /// even if the image is removed and the daemon restarted.
    pub async fn hold(
        self: &Arc<Self>,
        holder: &str,
        reference: &str,
    ) -> Result<Arc<ImageRecord>, ImagesError> {
        let (store, holder, reference) =
            (Arc::clone(self), holder.to_owned(), reference.to_owned());
        detached("holding the image", async move {
            let _writer = store.writer.lock().await;
            let image = store
                .find(&reference)?
                .ok_or(ImagesError::NotFound { image: reference })?;
            store
                .holds
                .put(HoldRecord {
                    holder,
                    image: image.id.clone(),
                })
                .await?;
            Ok(image)
        })
        .await
    }

    /// Ends a hold; the last one of a removed image frees its layers. No such hold is fine.
    pub async fn release(self: &Arc<Self>, holder: &str) -> Result<(), ImagesError> {
        let (store, holder) = (Arc::clone(self), holder.to_owned());
        detached("releasing the image", async move {
            let writer = store.writer.lock().await;
            let Some(hold) = store.holds.remove(&holder).await? else {
                return Ok(());
            };
            let held = store
                .holds
                .list()
                .iter()
                .any(|other| other.image == hold.image);
            let Some(image) = store.images.get(&hold.image) else {
                return Ok(());
            };
            if held || image.listed {
                return Ok(());
            }
            store.images.remove(&image.id).await?;
            drop(writer);
            store
                .free_layers(image.layers.iter().map(|layer| layer.diff_id.hex()))
                .await
        })
        .await
    }

    /// Who holds images.
    pub fn holders(&self) -> Vec<String> {
        self.holds
            .list()
            .iter()
            .map(|hold| hold.holder.clone())
            .collect()
    }
}

/// Removes a layer's file if nobody has it, without making the caller wait: a lease may end on an
/// async thread.
fn free_in_background(store: &Arc<Store>, layer: String) {
    let store = Arc::clone(store);
    let free = move || {
        if let Err(error) = store.free_layer(&layer) {
            tracing::warn!(
                %layer, error = %bulkhead_common::chain(&error),
                "a layer that nobody has cannot be removed; the next start tries again"
            );
        }
    };
    match Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(free)),
        Err(_) => free(),
    }
}

fn file_name(layer: &str) -> String {
    format!("{layer}.erofs")
}

/// Whether a file is what its name says it is.
fn describes_itself(path: &Path, layer: &str) -> bool {
    Description::read(path).is_some_and(|said| said.diff_id.hex() == layer)
}

/// Runs a change to its end, whether the caller waits for it or goes away.
async fn detached<T: Send + 'static>(
    what: &'static str,
    work: impl Future<Output = Result<T, ImagesError>> + Send + 'static,
) -> Result<T, ImagesError> {
    tokio::spawn(work)
        .await
        .unwrap_or(Err(ImagesError::Ending { what }))
}

#[cfg(test)]
mod tests;
