//! The store's records: images, who holds them, and layers of pulls that are not done.

use std::time::SystemTime;

use bulkhead_records::Record;
use serde::{Deserialize, Serialize};

use crate::{digest::Digest, manifest::ImageConfig};

/// An image whose every layer is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// `sha256:` and the digest of its configuration: CRI `Image.id` and `image_ref`.
    pub id: String,
    /// Whether it is an image of this node. One that was removed while containers were made from
    /// it stays as a record until they go, and nobody sees it.
    pub listed: bool,
    /// `registry/repository:tag`, sorted. A tag belongs to one image only.
    pub repo_tags: Vec<String>,
    /// `registry/repository@digest`, sorted: of the manifest, or of the index it was found by.
    pub repo_digests: Vec<String>,
    /// What to run.
    pub config: ImageConfig,
    /// The layers, lowest first, none twice.
    pub layers: Vec<LayerRecord>,
    /// Bytes on disk.
    pub size: u64,
    /// When it was first pulled, seconds since 1970.
    pub pulled_at: u64,
    /// The configuration as it was, for archives. Empty in records of releases that did not keep
    /// it.
    #[serde(default)]
    pub config_file: String,
}

/// A layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// The digest of its uncompressed tar; its hex digits are its file's name.
    pub diff_id: Digest,
    /// The digest of the blob it came as.
    pub digest: Digest,
    /// The blob's size.
    pub blob_size: u64,
    /// The file's size.
    pub file_size: u64,
    /// Whether its root hides all layers below (an opaque whiteout at the root). They are then
    /// not in the image's list, because overlayfs would show them.
    pub opaque_root: bool,
    /// Directories it has without an entry of their own ([`LayerInfo::implicit_dirs`]).
    ///
    /// [`LayerInfo::implicit_dirs`]: crate::layer::LayerInfo::implicit_dirs
    #[serde(default)]
    pub implicit_dirs: Vec<Vec<u8>>,
}

impl ImageRecord {
    /// The record of an image whose layers, lowest first, are all here: not what it is called.
    /// `id` is its configuration's digest, `config_file` that file, `config` what it says.
    pub fn new(
        id: &Digest,
        config_file: &[u8],
        config: ImageConfig,
        mut layers: Vec<LayerRecord>,
    ) -> Self {
        if let Some(top) = layers.iter().rposition(|layer| layer.opaque_root) {
            layers.drain(..top);
        }
        let size = layers.iter().fold(config_file.len() as u64, |sum, layer| {
            sum.saturating_add(layer.file_size)
        });
        Self {
            id: id.to_string(),
            listed: true,
            repo_tags: Vec::new(),
            repo_digests: Vec::new(),
            config,
            layers,
            size,
            pulled_at: now(),
            // JSON is UTF-8.
            config_file: String::from_utf8_lossy(config_file).into_owned(),
        }
    }
}

impl Record for ImageRecord {
    const TABLE: &'static str = "images";

    fn key(&self) -> &str {
        &self.id
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// Somebody (a container) needs an image's layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldRecord {
    /// The container's id.
    pub holder: String,
    /// The image's id.
    pub image: String,
}

impl Record for HoldRecord {
    const TABLE: &'static str = "image_holds";

    fn key(&self) -> &str {
        &self.holder
    }
}

/// A layer that a pull is fetching, or has fetched for an image that is not whole yet. Written
/// before the file is made, so that the file is never unknown; kept for a while, so that a pull
/// that is tried again, even by the next daemon, finds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartRecord {
    /// The hex digits of the layer's diff_id.
    pub layer: String,
    /// When a pull last wanted it, seconds since 1970.
    pub wanted_at: u64,
    /// See [`LayerRecord::opaque_root`]: of a file by a release whose files do not say it
    /// themselves.
    #[serde(default)]
    pub opaque_root: bool,
    /// See [`LayerRecord::implicit_dirs`]; likewise.
    #[serde(default)]
    pub implicit_dirs: Vec<Vec<u8>>,
}

/// What is known of a layer's finished file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileInfo {
    /// Its size.
    pub size: u64,
    /// See [`LayerRecord::opaque_root`].
    pub opaque_root: bool,
    /// See [`LayerRecord::implicit_dirs`].
    pub implicit_dirs: Vec<Vec<u8>>,
}

impl Record for PartRecord {
    const TABLE: &'static str = "image_parts";

    fn key(&self) -> &str {
        &self.layer
    }
}
