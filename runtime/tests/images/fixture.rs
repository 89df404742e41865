//! An image service in a temporary directory, and images to give it.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bulkhead_images::{
    ImageRecord, Images, PullSettings, RetryPolicy, Settings, SharedError, digest::Digest,
};
use bulkhead_records::Database;
use bulkhead_runtime::error::Grpc as _;
use serde_json::{Value, json};
use tonic::Code;

/// The service under test.
pub struct Service {
    pub images: Arc<Images>,
    pub dir: tempfile::TempDir,
}

/// How long a test waits for what must come or end; the machine may be slow and busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Impatient, so that tests are quick.
pub fn policy() -> RetryPolicy {
    RetryPolicy {
        connect_timeout: Duration::from_secs(5),
        stall_timeout: Duration::from_millis(900),
        tries: 4,
        backoff: Duration::from_millis(10),
        longest_wait: Duration::from_secs(2),
    }
}

impl Service {
    pub fn new() -> Self {
        Self::with(policy(), PullSettings::default())
    }

    pub fn with(policy: RetryPolicy, pull: PullSettings) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let images = open(dir.path(), dir.path().join("layers"), policy, pull);
        Self { images, dir }
    }

    /// Writes a registry's hosts.toml.
    pub fn hosts(&self, registry: &str, text: &str) {
        let dir = self.dir.path().join("certs.d").join(registry);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("hosts.toml"), text).unwrap();
    }

    pub async fn pull(&self, reference: &str) -> Result<Arc<ImageRecord>, SharedError> {
        let pull = self.images.pull(reference, None);
        tokio::time::timeout(PATIENCE, pull)
            .await
            .expect("a pull must end")
    }

    /// Pulls and expects a failure: its code, and its text with all causes.
    pub async fn failure(&self, reference: &str) -> (Code, String) {
        let error = self
            .pull(reference)
            .await
            .expect_err("this pull cannot succeed");
        let status = error.status();
        (status.code(), status.message().to_owned())
    }

    /// The names of the files in the store.
    pub fn files(&self) -> Vec<PathBuf> {
        files(&self.dir.path().join("layers"))
    }

    /// After a failed pull: no image, no temporary file.
    pub fn assert_nothing_left(&self) {
        assert!(self.images.list().is_empty());
        let odd: Vec<_> = self
            .files()
            .into_iter()
            .filter(|path| {
                path.extension()
                    .is_none_or(|extension| extension != "erofs")
            })
            .collect();
        assert!(odd.is_empty(), "{odd:?}");
    }
}

pub fn open(
    dir: &Path,
    layers_dir: PathBuf,
    policy: RetryPolicy,
    pull: PullSettings,
) -> Arc<Images> {
    let database = Database::open(&dir.join("state.redb")).unwrap();
    let settings = Settings {
        layers_dir,
        pods_dir: dir.join("pods"),
        hosts_dir: dir.join("certs.d"),
        retry: policy,
        pull,
    };
    Arc::new(Images::open(settings, &database).unwrap())
}

pub fn files(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect()
}

/// How a layer is packed.
#[derive(Clone, Copy)]
pub enum Packing {
    Gzip,
    Zstd,
    Plain,
}

/// A layer as a registry has it.
#[derive(Clone)]
pub struct Layer {
    pub blob: Vec<u8>,
    pub diff_id: Digest,
    media_type: &'static str,
}

impl Layer {
    /// A layer with these files.
    pub fn new(packing: Packing, files: &[(&str, &[u8])]) -> Self {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, path, *content).unwrap();
        }
        Self::of_tar(packing, &builder.into_inner().unwrap())
    }

    pub fn of_tar(packing: Packing, tar: &[u8]) -> Self {
        let (blob, media_type) = match packing {
            Packing::Plain => (tar.to_vec(), "application/vnd.oci.image.layer.v1.tar"),
            Packing::Gzip => {
                let mut packer =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                packer.write_all(tar).unwrap();
                (
                    packer.finish().unwrap(),
                    "application/vnd.docker.image.rootfs.diff.tar.gzip",
                )
            }
            Packing::Zstd => (
                zstd::encode_all(tar, 1).unwrap(),
                "application/vnd.oci.image.layer.v1.tar+zstd",
            ),
        };
        Self {
            blob,
            diff_id: Digest::of(tar),
            media_type,
        }
    }

    /// Bytes that do not shrink, different for each seed.
    pub fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }

    pub fn digest(&self) -> Digest {
        Digest::of(&self.blob)
    }
}

/// An image as a registry has it.
#[derive(Clone)]
pub struct Image {
    pub layers: Vec<Layer>,
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
}

pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

impl Image {
    pub fn new(layers: Vec<Layer>) -> Self {
        let diff_ids = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        Self::with_diff_ids(layers, diff_ids)
    }

    /// Its configuration may say what is not true.
    pub fn with_diff_ids(layers: Vec<Layer>, diff_ids: Vec<Digest>) -> Self {
        Self::for_architecture("amd64", layers, diff_ids)
    }

    /// One small layer, and a configuration that names some architecture.
    pub fn named(architecture: &str, seed: u64) -> Self {
        let image = Self::small(seed);
        let diff_ids = image.layers.iter().map(|layer| layer.diff_id.clone());
        let diff_ids = diff_ids.collect();
        Self::for_architecture(architecture, image.layers, diff_ids)
    }

    fn for_architecture(architecture: &str, layers: Vec<Layer>, diff_ids: Vec<Digest>) -> Self {
        let config = json!({
            "architecture": architecture, "os": "linux",
            "config": {"User": "1002", "Cmd": ["/bin/true"], "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = config.to_string().into_bytes();
        let blobs: Vec<Value> = layers
            .iter()
            .map(|layer| {
                json!({
                    "mediaType": layer.media_type,
                    "digest": layer.digest(), "size": layer.blob.len(),
                })
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST_TYPE,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": Digest::of(&config), "size": config.len(),
            },
            "layers": blobs,
        });
        Self {
            layers,
            config,
            manifest: manifest.to_string().into_bytes(),
        }
    }

    /// One small layer, told apart by a seed.
    pub fn small(seed: u64) -> Self {
        let noise = Layer::noise(seed, 20_000);
        Self::new(vec![Layer::new(Packing::Gzip, &[("etc/seed", &noise)])])
    }

    /// The id it must get.
    pub fn id(&self) -> String {
        Digest::of(&self.config).to_string()
    }

    /// An index that has it for linux/amd64, between others.
    pub fn index(&self) -> Vec<u8> {
        let entry = |digest: Digest, architecture: &str| {
            json!({
                "mediaType": MANIFEST_TYPE, "digest": digest, "size": self.manifest.len(),
                "platform": {"os": "linux", "architecture": architecture},
            })
        };
        let index = json!({
            "schemaVersion": 2, "mediaType": INDEX_TYPE,
            "manifests": [
                entry(Digest::of(b"arm"), "arm64"),
                entry(Digest::of(&self.manifest), "amd64"),
            ],
        });
        index.to_string().into_bytes()
    }

    /// All blobs: configuration and layers.
    pub fn blobs(&self) -> impl Iterator<Item = &[u8]> {
        let layers = self.layers.iter().map(|layer| layer.blob.as_slice());
        std::iter::once(self.config.as_slice()).chain(layers)
    }
}

/// Says on the terminal, past the test's own capture, that a test was not run.
pub fn skip(test: &str, reason: &str) {
    // With one thread the harness has begun a line with the name of the test.
    let _ = writeln!(std::io::stderr(), "\nskipped: {test}: {reason}");
}
