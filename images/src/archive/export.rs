//! From images on this node to an archive: an OCI layout and what `docker load` reads, in one.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Read, Write},
    sync::Arc,
};

use serde_json::{Value, json};

use super::{error::ArchiveError, spool::blob_name};
use crate::{
    digest::Digest,
    error::ImagesError,
    layer::{Description, Rebuild},
    manifest,
    store::{ImageRecord, Lease, Store},
};

const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// Images that are about to be written into an archive; their layers stay meanwhile.
#[derive(Debug)]
pub struct Export {
    store: Arc<Store>,
    images: Vec<Image>,
    _leases: Vec<Lease>,
}

#[derive(Debug)]
struct Image {
    record: Arc<ImageRecord>,
    /// As the configuration has them, lowest first, some perhaps twice.
    diff_ids: Vec<Digest>,
}

/// A layer that goes into the archive.
struct Layer {
    diff_id: Digest,
    description: Description,
}

fn failed(source: ArchiveError) -> ImagesError {
    ImagesError::Archive {
        action: "write",
        source: Box::new(source),
    }
}

impl Export {
    /// Looks images up and leases their layers.
    pub(crate) fn new(store: &Arc<Store>, references: &[String]) -> Result<Self, ImagesError> {
        let (mut images, mut leases) = (Vec::<Image>::new(), Vec::new());
        for reference in references {
            let find = || {
                store.find(reference)?.ok_or_else(|| ImagesError::NotFound {
                    image: reference.chars().take(300).collect(),
                })
            };
            leases.extend(
                find()?
                    .layers
                    .iter()
                    .map(|layer| store.lease(&layer.diff_id)),
            );
            // It may have been removed before the leases were there.
            let record = find()?;
            if images.iter().any(|image| image.record.id == record.id) {
                continue;
            }
            let incomplete = || {
                failed(ArchiveError::Incomplete {
                    image: record.id.clone(),
                })
            };
            if record.config_file.is_empty() {
                return Err(incomplete());
            }
            let config = manifest::parse_config(record.config_file.as_bytes());
            let config = config.map_err(|source| failed(source.into()))?;
            let here =
                |diff_id: &Digest| record.layers.iter().any(|layer| layer.diff_id == *diff_id);
            if !config.diff_ids.iter().all(here) {
                return Err(incomplete());
            }
            images.push(Image {
                diff_ids: config.diff_ids,
                record,
            });
        }
        if images.is_empty() {
            return Err(ImagesError::NoName);
        }
        Ok(Self {
            store: Arc::clone(store),
            images,
            _leases: leases,
        })
    }

    /// Writes the archive. Blocks.
    ///
    /// # Errors
    /// The writer's; a layer whose file is damaged, or of a release that did not keep how its tar
    /// was. What was written before is no archive then.
    pub fn write_to(&self, to: &mut impl Write) -> Result<(), ImagesError> {
        self.write(to).map_err(failed)
    }

    fn write(&self, to: &mut impl Write) -> Result<(), ArchiveError> {
        let layers = self.layers()?;
        let mut blobs: Vec<(Digest, Vec<u8>)> = Vec::new();
        let (mut index, mut docker) = (Vec::new(), Vec::new());
        for image in &self.images {
            let config = image.record.config_file.as_bytes();
            let manifest = image_manifest(image, &layers).to_string().into_bytes();
            let digest = Digest::of(&manifest);
            let entry = |annotations: Value| {
                json!({
                    "mediaType": MANIFEST_TYPE, "digest": digest, "size": manifest.len(),
                    "annotations": annotations,
                })
            };
            for tag in &image.record.repo_tags {
                let name = tag.rsplit_once(':').map_or("", |(_, tag)| tag);
                index.push(entry(json!({
                    "io.containerd.image.name": tag,
                    "org.opencontainers.image.ref.name": name,
                })));
            }
            if image.record.repo_tags.is_empty() {
                index.push(entry(json!({})));
            }
            let config_digest = Digest::of(config);
            docker.push(json!({
                "Config": blob_name(&config_digest),
                "RepoTags": image.record.repo_tags,
                "Layers": image.diff_ids.iter().map(blob_name).collect::<Vec<_>>(),
            }));
            blobs.push((config_digest, config.to_vec()));
            blobs.push((digest, manifest));
        }
        let layout = json!({"imageLayoutVersion": "1.0.0"});
        let index = json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": index});
        for (name, value) in [
            ("oci-layout", layout),
            ("index.json", index),
            ("manifest.json", Value::Array(docker)),
        ] {
            put(to, name, value.to_string().as_bytes())?;
        }
        let mut written = HashSet::new();
        for (digest, bytes) in &blobs {
            if written.insert(digest) {
                put(to, &blob_name(digest), bytes)?;
            }
        }
        for layer in &layers {
            self.put_layer(to, layer)?;
        }
        // Two blocks of zeros end a tar.
        to.write_all(&[0; 1024])
            .and_then(|()| to.flush())
            .map_err(|source| ArchiveError::Write { source })
    }

    /// All layers of all images, each once, with what their files say of them.
    fn layers(&self) -> Result<Vec<Layer>, ArchiveError> {
        let mut seen = HashSet::new();
        let mut layers = Vec::new();
        for image in &self.images {
            for diff_id in &image.diff_ids {
                if !seen.insert(diff_id) {
                    continue;
                }
                let said = Description::read(&self.store.layer_path(diff_id));
                let description =
                    said.filter(|said| said.diff_id == *diff_id)
                        .ok_or_else(|| ArchiveError::Incomplete {
                            image: image.record.id.clone(),
                        })?;
                layers.push(Layer {
                    diff_id: diff_id.clone(),
                    description,
                });
            }
        }
        Ok(layers)
    }

    fn put_layer(&self, to: &mut impl Write, layer: &Layer) -> Result<(), ArchiveError> {
        let damaged = |source| ArchiveError::Layer {
            diff_id: layer.diff_id.clone(),
            source,
        };
        let file = File::open(self.store.layer_path(&layer.diff_id));
        let file = file.map_err(|source| damaged(Some(source)))?;
        let mut tar = Rebuild::new(file, &layer.description.recipe)
            .map_err(|source| damaged(Some(source)))?;
        let size = layer.description.tar_size;
        put_header(to, &blob_name(&layer.diff_id), size)?;
        let mut hasher = layer.diff_id.hasher();
        let mut buffer = vec![0; 256 << 10];
        let mut left = size;
        loop {
            let n = match tar.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(source) => return Err(damaged(Some(source))),
            };
            let bytes = buffer.get(..n).unwrap_or_default();
            left = left.checked_sub(n as u64).ok_or_else(|| damaged(None))?;
            hasher.update(bytes);
            to.write_all(bytes)
                .map_err(|source| ArchiveError::Write { source })?;
        }
        if left > 0 || hasher.finish() != layer.diff_id {
            return Err(damaged(None));
        }
        pad(to, size)
    }
}

/// The manifest of an image whose layers are not packed.
fn image_manifest(image: &Image, layers: &[Layer]) -> Value {
    let config = image.record.config_file.as_bytes();
    let size_of = |diff_id: &Digest| {
        let layer = layers.iter().find(|layer| layer.diff_id == *diff_id);
        layer.map_or(0, |layer| layer.description.tar_size)
    };
    let layers = image.diff_ids.iter().map(
        |diff_id| json!({"mediaType": LAYER_TYPE, "digest": diff_id, "size": size_of(diff_id)}),
    );
    json!({
        "schemaVersion": 2, "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": Digest::of(config), "size": config.len()},
        "layers": layers.collect::<Vec<_>>(),
    })
}

fn put(to: &mut impl Write, name: &str, bytes: &[u8]) -> Result<(), ArchiveError> {
    let size = bytes.len() as u64;
    put_header(to, name, size)?;
    to.write_all(bytes)
        .map_err(|source| ArchiveError::Write { source })?;
    pad(to, size)
}

fn put_header(to: &mut impl Write, name: &str, size: u64) -> Result<(), ArchiveError> {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header
        .set_path(name)
        .and_then(|()| {
            header.set_cksum();
            to.write_all(header.as_bytes())
        })
        .map_err(|source: io::Error| ArchiveError::Write { source })
}

/// Up to the next block of a tar.
fn pad(to: &mut impl Write, size: u64) -> Result<(), ArchiveError> {
    let short = usize::try_from((512 - size % 512) % 512).unwrap_or(0);
    to.write_all([0; 512].get(..short).unwrap_or_default())
        .map_err(|source| ArchiveError::Write { source })
}
