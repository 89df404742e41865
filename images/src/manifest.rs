//! Manifests, indexes and image configurations: hostile JSON turned into what a pull works with.
//!
//! Pure functions with limits. The forms are those of the OCI image-spec 1.1 and of Docker's
//! image manifest version 2 schema 2, which differ only in media types. The types are our own
//! and not `oci-spec`'s, because fields that real registries send as `null` or leave out must not
//! fail a pull, and unknown ones must not matter.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::{
    digest::{BadDigest, Digest},
    platform::Platform,
    registry::Blob,
};

/// Largest manifest or index: what registries accept at most (distribution-spec, "Pushing
/// Manifests").
pub const LARGEST_MANIFEST: u64 = 4 << 20;
/// Largest image configuration.
pub const LARGEST_CONFIG: u64 = 8 << 20;
/// Most layers in a manifest; how many differ is limited below.
const MOST_LAYERS: usize = 500;
/// Most entries looked at in an index.
const MOST_ENTRIES: usize = 1000;
/// Most entries without a platform whose configurations are asked for it.
const MOST_NAMELESS: usize = 16;
/// Most `Volumes`: each is a mount, of which a container has no more.
const MOST_VOLUMES: usize = 1024;
/// Largest single layer, compressed: 16 TiB, more than a layer's image can have, and sums of 500
/// stay far from overflow. What an image may have is the pull's to say.
const LARGEST_BLOB: u64 = 16 << 40;

/// For the `Accept` header: all forms understood.
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// Why a manifest or configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or JSON of another form.
    #[error("the {what} is not what it should be: {source}")]
    Json {
        /// Manifest, index or configuration.
        what: &'static str,
        /// Why.
        source: serde_json::Error,
    },
    /// A media type that is not an image's.
    #[error("{what} of media type {media_type:?} is not supported; this is no container image")]
    MediaType {
        /// Manifest or layer.
        what: &'static str,
        /// The type.
        media_type: String,
    },
    /// Docker's schema 1, gone from registries since 2023.
    #[error("the manifest has the form of schema 1, which is obsolete; push the image again")]
    SchemaOne,
    /// A digest in it is none.
    #[error(transparent)]
    Digest(#[from] BadDigest),
    /// A count or a size beyond the limit.
    #[error("the image has {count} {what}, at most {limit} are allowed")]
    TooMany {
        /// What is counted.
        what: &'static str,
        /// How many there are.
        count: u64,
        /// How many there may be.
        limit: u64,
    },
    /// No image for this platform.
    #[error("the image has no variant for linux/amd64, only for {offered}")]
    Platform {
        /// What there is.
        offered: String,
    },
    /// An index in an index in an index.
    #[error("indexes are nested too deeply")]
    Nested,
    /// Manifest and configuration disagree.
    #[error("the manifest has {layers} layers, the configuration {diff_ids} diff_ids")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// A diff_id that is not sha256.
    #[error("the diff_id {0} is not a sha256 digest; others are not supported")]
    DiffIdAlgorithm(Digest),
    /// Nothing that says what to run.
    #[error("the manifest names no configuration; this is no container image")]
    NoConfig,
    /// Two layers that cannot be told apart as disks.
    #[error("the layers {one} and {other} begin with the same digits")]
    Alike {
        /// One layer.
        one: Digest,
        /// The other.
        other: Digest,
    },
}

/// What a manifest's digest or tag led to.
#[derive(Debug, PartialEq, Eq)]
pub enum Manifest {
    /// One image.
    Image {
        /// Its configuration.
        config: Blob,
        /// Its layers, lowest first.
        layers: Vec<Blob>,
    },
    /// One image per platform: the one for this node. More than one only where none of them says
    /// its platform: their configurations do.
    Index(Vec<Digest>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawManifest {
    schema_version: Option<u32>,
    media_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<Option<RawDescriptor>>>,
    manifests: Option<Vec<Option<RawDescriptor>>>,
}

// Go, in which registries and builders are written, reads `null` as the empty value wherever it
// stands; so does all that follows.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawDescriptor {
    media_type: Option<String>,
    digest: Option<String>,
    size: Option<u64>,
    platform: Option<RawPlatform>,
}

impl RawDescriptor {
    fn digest(&self) -> Result<Digest, BadDigest> {
        self.digest.as_deref().unwrap_or_default().parse()
    }
}

/// A list as Go reads it.
fn list<T: Default>(raw: Option<Vec<Option<T>>>) -> Vec<T> {
    let items = raw.unwrap_or_default().into_iter();
    items.map(Option::unwrap_or_default).collect()
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawPlatform {
    architecture: Option<String>,
    os: Option<String>,
    variant: Option<String>,
}

impl RawPlatform {
    /// `None` if it says nothing.
    fn named(&self) -> Option<Platform> {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let (os, architecture) = (text(&self.os), text(&self.architecture));
        if os.is_empty() && architecture.is_empty() {
            return None;
        }
        Some(Platform::new(&os, &architecture, &text(&self.variant)))
    }
}

/// Reads a manifest or an index. `content_type` counts where the document does not say itself.
pub fn parse_manifest(bytes: &[u8], content_type: &str) -> Result<Manifest, ManifestError> {
    let json = |source| ManifestError::Json {
        what: "manifest",
        source,
    };
    let raw: RawManifest = serde_json::from_slice(bytes).map_err(json)?;
    if raw.schema_version == Some(1) {
        return Err(ManifestError::SchemaOne);
    }
    let media_type = raw
        .media_type
        .as_deref()
        .filter(|text| !text.is_empty())
        .unwrap_or_else(|| content_type.split(';').next().unwrap_or_default().trim());
    let index = match media_type {
        "application/vnd.oci.image.index.v1+json"
        | "application/vnd.docker.distribution.manifest.list.v2+json" => true,
        "application/vnd.oci.image.manifest.v1+json"
        | "application/vnd.docker.distribution.manifest.v2+json" => false,
        // Registries that serve files say nothing of use: the form decides.
        "" | "application/json" | "application/octet-stream" | "text/plain" => {
            raw.manifests.is_some()
        }
        other => {
            return Err(ManifestError::MediaType {
                what: "a manifest",
                media_type: other.chars().take(160).collect(),
            });
        }
    };
    if index {
        return choose(list(raw.manifests));
    }
    let config = raw.config.ok_or(ManifestError::NoConfig)?;
    let layers = list(raw.layers);
    limit("layers", layers.len() as u64, MOST_LAYERS as u64)?;
    for layer in &layers {
        check_layer_type(layer.media_type.as_deref().unwrap_or_default())?;
    }
    Ok(Manifest::Image {
        config: blob(config, "bytes of configuration", LARGEST_CONFIG)?,
        layers: layers
            .into_iter()
            .map(|layer| blob(layer, "bytes in a layer", LARGEST_BLOB))
            .collect::<Result<_, _>>()?,
    })
}

fn limit(what: &'static str, count: u64, limit: u64) -> Result<(), ManifestError> {
    if count > limit {
        return Err(ManifestError::TooMany { what, count, limit });
    }
    Ok(())
}

fn blob(raw: RawDescriptor, what: &'static str, most: u64) -> Result<Blob, ManifestError> {
    let size = raw.size.unwrap_or_default();
    limit(what, size, most)?;
    Ok(Blob {
        digest: raw.digest()?,
        size,
    })
}

/// How a layer is packed is seen from its first bytes; here only that it is a layer at all, and
/// not an encrypted one or some artifact.
fn check_layer_type(media_type: &str) -> Result<(), ManifestError> {
    let known = [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
    ];
    let rest = known
        .into_iter()
        .find_map(|base| media_type.strip_prefix(base));
    match rest {
        Some("" | "+gzip" | ".gzip" | "+zstd" | ".zstd") => Ok(()),
        _ => Err(ManifestError::MediaType {
            what: "a layer",
            media_type: media_type.chars().take(160).collect(),
        }),
    }
}

/// The entry of an index for linux/amd64: the baseline variant if there is one, else the lowest.
/// Without such, those that say no platform: an image of one platform wrapped into an index.
fn choose(entries: Vec<RawDescriptor>) -> Result<Manifest, ManifestError> {
    limit("index entries", entries.len() as u64, MOST_ENTRIES as u64)?;
    let named = |entry: &RawDescriptor| entry.platform.as_ref().and_then(RawPlatform::named);
    let best = entries
        .iter()
        .filter_map(|entry| Some((named(entry)?.distance()?, entry)))
        .min_by_key(|(distance, _)| *distance);
    if let Some((_, entry)) = best {
        return Ok(Manifest::Index(vec![entry.digest()?]));
    }
    let nameless: Vec<Digest> = entries
        .iter()
        .filter(|entry| named(entry).is_none() && entry.digest.is_some())
        .take(MOST_NAMELESS)
        .map(RawDescriptor::digest)
        .collect::<Result<_, _>>()?;
    if !nameless.is_empty() {
        return Ok(Manifest::Index(nameless));
    }
    let platforms = entries.iter().filter_map(named);
    Err(not_here(platforms.filter(|platform| {
        !platform.to_string().starts_with("unknown/")
    })))
}

/// That there is nothing for this node among these.
pub fn not_here(offered: impl IntoIterator<Item = Platform>) -> ManifestError {
    let shown = |platform: Platform| platform.to_string().chars().take(100).collect::<String>();
    let offered: Vec<_> = offered
        .into_iter()
        .take(20)
        .map(|platform| format!("{:?}", shown(platform)))
        .collect();
    let offered = if offered.is_empty() {
        "none".into()
    } else {
        offered.join(", ")
    };
    ManifestError::Platform { offered }
}

/// What of an image's configuration containers are made from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// `User`: user or uid, with or without `:group`.
    pub user: String,
    /// `Env`: `NAME=value`.
    pub env: Vec<String>,
    /// `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub cmd: Vec<String>,
    /// `WorkingDir`.
    pub working_dir: String,
    /// `Labels`.
    pub labels: BTreeMap<String, String>,
    /// `StopSignal`: a name or a number; empty when not said.
    pub stop_signal: String,
    /// `Volumes`: paths, as they stand there.
    pub volumes: Vec<String>,
}

#[derive(Deserialize)]
struct RawConfigFile {
    #[serde(default)]
    architecture: Option<String>,
    #[serde(default)]
    os: Option<String>,
    #[serde(default)]
    variant: Option<String>,
    #[serde(default)]
    config: Option<RawConfig>,
    #[serde(default)]
    rootfs: Option<RawRootfs>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawRootfs {
    diff_ids: Option<Vec<Option<String>>>,
}

/// A command line. Docker takes a single text for a list of one.
#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    List(Vec<Option<String>>),
    One(String),
}

impl Words {
    fn list(self) -> Vec<String> {
        match self {
            Self::List(words) => list(Some(words)),
            Self::One(word) => vec![word],
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct RawConfig {
    user: Option<String>,
    env: Option<Vec<Option<String>>>,
    entrypoint: Option<Words>,
    cmd: Option<Words>,
    working_dir: Option<String>,
    labels: Option<BTreeMap<String, Option<String>>>,
    stop_signal: Option<String>,
    volumes: Option<BTreeMap<String, serde_json::Value>>,
}

/// An image's configuration as it was read.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigFile {
    /// What to run.
    pub config: ImageConfig,
    /// Each layer's diff_id, lowest first.
    pub diff_ids: Vec<Digest>,
    /// What it says it is for. An image is chosen by its index, and alone it is taken as it is:
    /// many a build tool leaves its own platform here.
    pub platform: Platform,
}

fn read_config(bytes: &[u8]) -> Result<RawConfigFile, ManifestError> {
    serde_json::from_slice(bytes).map_err(|source| ManifestError::Json {
        what: "image configuration",
        source,
    })
}

impl RawConfigFile {
    fn platform(&self) -> Platform {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let (os, architecture) = (text(&self.os), text(&self.architecture));
        Platform::new(&os, &architecture, &text(&self.variant))
    }
}

/// What an image's configuration says it is for.
pub fn platform_of(bytes: &[u8]) -> Result<Platform, ManifestError> {
    Ok(read_config(bytes)?.platform())
}

/// Reads an image's configuration.
pub fn parse_config(bytes: &[u8]) -> Result<ConfigFile, ManifestError> {
    let raw = read_config(bytes)?;
    let platform = raw.platform();
    if !platform.is_linux() {
        return Err(not_here([platform]));
    }
    let diff_ids = list(raw.rootfs.unwrap_or_default().diff_ids)
        .iter()
        .take(MOST_LAYERS + 1)
        .map(|text| text.parse::<Digest>())
        .collect::<Result<Vec<_>, _>>()?;
    if let Some(other) = diff_ids
        .iter()
        .find(|digest| digest.algorithm() != super::digest::Algorithm::Sha256)
    {
        return Err(ManifestError::DiffIdAlgorithm(other.clone()));
    }
    let config = raw.config.unwrap_or_default();
    let volumes = config.volumes.unwrap_or_default();
    limit("volumes", volumes.len() as u64, MOST_VOLUMES as u64)?;
    let config = ImageConfig {
        user: config.user.unwrap_or_default(),
        env: list(config.env),
        entrypoint: config.entrypoint.map(Words::list).unwrap_or_default(),
        cmd: config.cmd.map(Words::list).unwrap_or_default(),
        working_dir: config.working_dir.unwrap_or_default(),
        labels: config
            .labels
            .unwrap_or_default()
            .into_iter()
            .map(|(name, value)| (name, value.unwrap_or_default()))
            .collect(),
        stop_signal: config.stop_signal.unwrap_or_default(),
        volumes: volumes.into_keys().collect(),
    };
    Ok(ConfigFile {
        config,
        diff_ids,
        platform,
    })
}

/// Hex digits of a layer's diff_id in its disk's serial: `l` and these are the 20 bytes that
/// virtio-blk has for it (virtio 1.2 §5.2.6.1).
pub const SERIAL_DIGITS: usize = 19;

/// Pairs each layer's blob with its diff_id. A layer that comes again further up is kept there
/// only: all it has covers what it had below, and overlayfs refuses the same directory twice.
pub fn pair_layers(
    layers: Vec<Blob>,
    diff_ids: Vec<Digest>,
    most: usize,
) -> Result<Vec<(Digest, Blob)>, ManifestError> {
    if layers.len() != diff_ids.len() {
        return Err(ManifestError::LayerCount {
            layers: layers.len(),
            diff_ids: diff_ids.len(),
        });
    }
    let mut seen = HashSet::new();
    let mut pairs: Vec<_> = diff_ids
        .into_iter()
        .zip(layers)
        .rev()
        .filter(|(diff_id, _)| seen.insert(diff_id.clone()))
        .collect();
    pairs.reverse();
    limit("different layers", pairs.len() as u64, most as u64)?;
    let mut serials = BTreeMap::new();
    for (diff_id, _) in &pairs {
        let serial: String = diff_id.hex().chars().take(SERIAL_DIGITS).collect();
        if let Some(one) = serials.insert(serial, diff_id.clone()) {
            return Err(ManifestError::Alike {
                one,
                other: diff_id.clone(),
            });
        }
    }
    Ok(pairs)
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
