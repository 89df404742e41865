//! Which images an archive has: its lists, hostile as a registry's answers, read as those are.

use serde::Deserialize;

use super::{
    error::ArchiveError,
    spool::{Spool, blob_name},
};
use crate::{
    digest::Digest,
    manifest::{self, LARGEST_CONFIG, LARGEST_MANIFEST, Manifest, ManifestError},
    platform::Platform,
    reference::{ImageName, Target},
    registry::Blob,
};

/// How deep an index may hold indexes.
const DEEPEST_INDEX: usize = 3;
/// Most images in an archive, and names of one.
const MOST_IMAGES: usize = 1000;
const MOST_NAMES: usize = 1000;

/// An image of an archive.
#[derive(Debug)]
pub(super) struct Found {
    /// Its configuration, as it stands there.
    pub config: Vec<u8>,
    /// Its layers, lowest first.
    pub layers: Vec<FoundLayer>,
    /// What it is called.
    pub names: Vec<ImageName>,
    /// The digest of its manifest, or of the index that led to it.
    pub digest: Option<Digest>,
}

/// A layer of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FoundLayer {
    /// Where it is in the archive.
    pub name: String,
    /// What its bytes must be; a docker archive says only what they unpack to.
    pub digest: Option<Digest>,
}

/// Finds them. Blocks: reads from the archive.
pub(super) fn images(archive: &Spool) -> Result<Vec<Found>, ArchiveError> {
    let docker = if archive.has("manifest.json") {
        docker(archive)?
    } else {
        Vec::new()
    };
    if !archive.has("index.json") {
        return if archive.has("manifest.json") {
            Ok(docker)
        } else {
            Err(ArchiveError::Neither)
        };
    }
    let mut images = oci(archive)?;
    // Docker writes both lists, and some releases the names into one of them only.
    for image in &mut images {
        let same = docker.iter().filter(|other| other.config == image.config);
        for name in same.flat_map(|other| &other.names) {
            if !image.names.contains(name) {
                image.names.push(name.clone());
            }
        }
    }
    Ok(images)
}

#[derive(Deserialize)]
struct OciIndex {
    manifests: Option<Vec<Option<OciEntry>>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct OciEntry {
    media_type: Option<String>,
    digest: Option<String>,
    platform: Option<OciPlatform>,
    annotations: Option<std::collections::BTreeMap<String, Option<String>>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct OciPlatform {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
}

impl OciEntry {
    /// What the annotations call it: its whole name, as containerd and Docker write it, or as
    /// podman does; a tag alone names nothing.
    fn name(&self) -> Result<Option<ImageName>, ArchiveError> {
        let annotation = |key: &str| {
            let annotations = self.annotations.as_ref()?;
            annotations
                .get(key)?
                .as_deref()
                .filter(|text| !text.is_empty())
        };
        if let Some(name) = annotation("io.containerd.image.name") {
            return parse_name(name).map(Some);
        }
        match annotation("org.opencontainers.image.ref.name") {
            Some(name) if name.contains(['/', ':']) => Ok(ImageName::parse(name).ok()),
            _ => Ok(None),
        }
    }

    /// Its platform, where that is said and another than this node's.
    fn elsewhere(&self) -> Option<Platform> {
        let platform = self.platform.as_ref()?;
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let named = Platform::new(
            &text(&platform.os),
            &text(&platform.architecture),
            &text(&platform.variant),
        );
        named.distance().is_none().then_some(named)
    }
}

fn parse_name(name: &str) -> Result<ImageName, ArchiveError> {
    ImageName::parse(name).map_err(|source| ArchiveError::Name {
        name: name.chars().take(300).collect(),
        source,
    })
}

/// An OCI image layout (image-layout.md): each entry of its index is an image, or an index of one
/// image's variants.
fn oci(archive: &Spool) -> Result<Vec<Found>, ArchiveError> {
    let bytes = archive.whole("index.json", "an OCI layout", LARGEST_MANIFEST)?;
    let index: OciIndex = json("index.json", &bytes)?;
    let mut images: Vec<Found> = Vec::new();
    let mut elsewhere = Vec::new();
    let entries = index.manifests.unwrap_or_default().into_iter().flatten();
    for entry in entries.take(MOST_IMAGES) {
        if let Some(platform) = entry.elsewhere() {
            elsewhere.push(platform);
            continue;
        }
        let digest: Digest = entry
            .digest
            .as_deref()
            .unwrap_or_default()
            .parse()
            .map_err(ManifestError::from)?;
        let name = entry.name()?;
        let media_type = entry.media_type.as_deref().unwrap_or_default();
        let (config, layers) = oci_image(archive, &digest, media_type)?;
        let image = Found {
            config: archive.blob(&config.digest, "a manifest", LARGEST_CONFIG)?,
            layers,
            names: name.into_iter().collect(),
            digest: Some(digest),
        };
        // One entry per name is how several names of one image are written.
        match images.iter_mut().find(|other| other.digest == image.digest) {
            Some(other) => other.names.extend(image.names),
            None => images.push(image),
        }
    }
    if images.is_empty() {
        return Err(manifest::not_here(elsewhere).into());
    }
    Ok(images)
}

fn oci_image(
    archive: &Spool,
    digest: &Digest,
    media_type: &str,
) -> Result<(Blob, Vec<FoundLayer>), ArchiveError> {
    let mut digest = digest.clone();
    let mut media_type = media_type.to_owned();
    for _ in 0..DEEPEST_INDEX {
        let bytes = archive.blob(&digest, "an index", LARGEST_MANIFEST)?;
        match manifest::parse_manifest(&bytes, &media_type)? {
            Manifest::Image { config, layers } => {
                let layers = layers.into_iter().map(|layer| FoundLayer {
                    name: blob_name(&layer.digest),
                    digest: Some(layer.digest),
                });
                return Ok((config, layers.collect()));
            }
            // Variants that are not in the archive are no choice.
            Manifest::Index(candidates) => {
                digest = candidates
                    .into_iter()
                    .find(|next| archive.has(&blob_name(next)))
                    .ok_or_else(|| manifest::not_here([]))?;
                media_type.clear();
            }
        }
    }
    Err(ManifestError::Nested.into())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: Option<String>,
    repo_tags: Option<Vec<Option<String>>>,
    layers: Option<Vec<Option<String>>>,
}

/// What `docker save` writes.
fn docker(archive: &Spool) -> Result<Vec<Found>, ArchiveError> {
    let bytes = archive.whole("manifest.json", "docker save", LARGEST_MANIFEST)?;
    let list: Vec<DockerImage> = json("manifest.json", &bytes)?;
    let images = list.into_iter().take(MOST_IMAGES);
    images
        .map(|image| {
            let name = image.config.unwrap_or_default();
            let config = archive.whole(&name, "manifest.json", LARGEST_CONFIG)?;
            // Where a name is a digest it is held to it.
            if let Some(expected) = digest_in(&name) {
                let actual = Digest::of(&config);
                if actual != expected {
                    return Err(ArchiveError::Digest { name, actual });
                }
            }
            let layers = image.layers.unwrap_or_default().into_iter().flatten();
            let tags = image.repo_tags.unwrap_or_default().into_iter().flatten();
            Ok(Found {
                config,
                layers: layers
                    .map(|name| FoundLayer { name, digest: None })
                    .collect(),
                names: tags
                    .take(MOST_NAMES)
                    .map(|tag| parse_name(&tag))
                    .collect::<Result<_, _>>()?,
                digest: None,
            })
        })
        .collect()
}

/// `<hex>.json`, or `blobs/sha256/<hex>`.
fn digest_in(name: &str) -> Option<Digest> {
    let hex = name
        .strip_prefix("blobs/sha256/")
        .or_else(|| name.strip_suffix(".json"))?;
    format!("sha256:{hex}").parse().ok()
}

fn json<'a, T: Deserialize<'a>>(name: &'static str, bytes: &'a [u8]) -> Result<T, ArchiveError> {
    serde_json::from_slice(bytes).map_err(|source| ArchiveError::Json { name, source })
}

/// The tags among names: `registry/repository:tag`.
pub(super) fn tags(names: &[ImageName]) -> Vec<String> {
    names.iter().filter_map(ImageName::repo_tag).collect()
}

/// `registry/repository@digest` for each repository that the names are of.
pub(super) fn repo_digests(names: &[ImageName], digest: Option<&Digest>) -> Vec<String> {
    names
        .iter()
        .filter_map(|name| match (name.target(), digest?) {
            // An archive may call an image by another's digest.
            (Target::Digest(named), digest) if named != digest => None,
            (_, digest) => Some(name.repo_digest(digest)),
        })
        .collect()
}
