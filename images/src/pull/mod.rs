//! A pull: from a reference to an image on this node.
//!
//! Pulls of one image with the same credentials at the same time are one pull; pulls that have a
//! layer in common fetch it once. The work is a future that those who wait for it drive: when the
//! last of them goes away, the connections close and temporary files go, and layers that are done
//! stay for the next try.

pub(crate) mod empty;
mod layer;
mod progress;
mod stream;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bulkhead_common::lock;
use futures::{
    FutureExt as _, StreamExt as _, TryStreamExt as _,
    future::{BoxFuture, WeakShared},
};

use self::layer::{LayerRequest, SingleFlight};
pub use self::progress::{LayerProgress, LayerSnapshot, LayerState, PullProgress};
pub(crate) use self::{
    layer::store_layer,
    stream::{channel, unpack},
};
use crate::{
    digest::Digest,
    error::{ImagesError, SharedError},
    layer::Limits,
    manifest::{self, Manifest, ManifestError},
    platform::Platform,
    reference::ImageName,
    registry::{Blob, Credentials, Document, Registry, RegistryError, Session},
    store::{ImageRecord, LayerRecord, Lease, Store},
};

/// How deep an index may hold indexes.
const DEEPEST_INDEX: usize = 3;

/// How often a long pull is told of in the log.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Limits and habits of pulls.
#[derive(Debug, Clone)]
pub struct PullSettings {
    /// Layers of one pull fetched at a time.
    pub parallel_layers: usize,
    /// Most different layers: what overlayfs stacks (`OVL_MAX_STACK`).
    pub max_layers: usize,
    /// Most bytes of all layers, compressed.
    pub max_image_bytes: u64,
    /// What one layer may ask for.
    pub layer_limits: Limits,
    /// How long a finished layer of an unfinished pull is kept for the next try.
    pub keep_parts: Duration,
}

impl Default for PullSettings {
    fn default() -> Self {
        Self {
            parallel_layers: 3,
            max_layers: 500,
            max_image_bytes: 1 << 40,
            layer_limits: Limits::default(),
            keep_parts: Duration::from_secs(3600),
        }
    }
}

type Work = BoxFuture<'static, Result<Arc<ImageRecord>, SharedError>>;
type Key = (ImageName, Credentials);
type Running = HashMap<Key, (WeakShared<Work>, Arc<PullProgress>)>;

/// Runs pulls.
#[derive(Debug)]
pub struct Puller {
    store: Arc<Store>,
    registry: Arc<Registry>,
    settings: PullSettings,
    limits: Arc<Limits>,
    layers: SingleFlight,
    running: Mutex<Running>,
}

impl Puller {
    /// A puller into this store.
    pub fn new(store: Arc<Store>, registry: Arc<Registry>, settings: PullSettings) -> Arc<Self> {
        Arc::new(Self {
            store,
            registry,
            limits: Arc::new(settings.layer_limits.clone()),
            settings,
            layers: SingleFlight::default(),
            running: Mutex::default(),
        })
    }

    /// Pulls, or waits for the same pull that is under way.
    pub async fn pull(
        self: &Arc<Self>,
        name: ImageName,
        credentials: Credentials,
    ) -> Result<Arc<ImageRecord>, SharedError> {
        let key = (name, credentials);
        let work = {
            let mut running = lock(&self.running);
            running.retain(|_, (work, _)| work.upgrade().is_some());
            let found = running.get(&key).and_then(|(work, _)| work.upgrade());
            if let Some(work) = found {
                tracing::debug!(image = %key.0, "joining the pull under way");
                work
            } else {
                let progress = Arc::new(PullProgress::default());
                let this = Arc::clone(self);
                let (name, credentials) = key.clone();
                let watched = Arc::clone(&progress);
                let work = async move { this.run(name, credentials, watched).await };
                let work = work.boxed().shared();
                if let Some(weak) = work.downgrade() {
                    running.insert(key, (weak, progress));
                }
                work
            }
        };
        let result = work.await;
        // The key has the credentials in it: not kept for longer than the pull.
        let mut running = lock(&self.running);
        running.retain(|_, (work, _)| work.upgrade().is_some());
        result
    }

    /// The progress of the pull of this image, if one is under way.
    pub fn progress(&self, name: &ImageName) -> Option<Arc<PullProgress>> {
        let running = lock(&self.running);
        running
            .iter()
            .find(|((other, _), (work, _))| other == name && work.upgrade().is_some())
            .map(|(_, (_, progress))| Arc::clone(progress))
    }

    async fn run(
        self: Arc<Self>,
        name: ImageName,
        credentials: Credentials,
        progress: Arc<PullProgress>,
    ) -> Result<Arc<ImageRecord>, SharedError> {
        let start = Instant::now();
        tracing::info!(image = %name, "pull begins");
        self.store.prune_parts(false).await?;
        let work = self.plan_and_fetch(&name, &credentials, &progress);
        tokio::pin!(work);
        let mut ticks = tokio::time::interval_at((start + TELL_EVERY).into(), TELL_EVERY);
        let result = loop {
            tokio::select! {
                result = &mut work => break result,
                _ = ticks.tick() => progress.tell(&name),
            }
        };
        match &result {
            Ok(image) => tracing::info!(
                image = %name, id = %image.id, layers = image.layers.len(),
                fetched = progress.snapshot().iter().map(|layer| layer.fetched).sum::<u64>(),
                took_ms = start.elapsed().as_millis(), "pull done"
            ),
            Err(error) => {
                tracing::warn!(image = %name, error = %bulkhead_common::chain(error), "pull failed");
                if error.0.is_disk_full() {
                    self.store.prune_parts(true).await?;
                }
            }
        }
        result
    }

    async fn plan_and_fetch(
        self: &Arc<Self>,
        name: &ImageName,
        credentials: &Credentials,
        progress: &Arc<PullProgress>,
    ) -> Result<Arc<ImageRecord>, SharedError> {
        let registry = |source| ResolveError::Registry(source).of(name);
        let refused = |source| ResolveError::Manifest(source).of(name);

        let session = self
            .registry
            .session(name, credentials)
            .await
            .map_err(registry)?;
        let session = Arc::new(session);
        // What the kubelet does for every container with imagePullPolicy Always.
        if self.store.find(&name.to_string())?.is_some()
            && let Some(digest) = session.tag_digest(manifest::ACCEPT).await
            && let Some(image) = self.renew(name, &digest).await?
        {
            return Ok(image);
        }
        let limit = manifest::LARGEST_MANIFEST;
        let top = session
            .manifest(manifest::ACCEPT, limit)
            .await
            .map_err(registry)?;
        if let Some(image) = self.renew(name, &top.digest).await? {
            return Ok(image);
        }
        let found = resolve(&session, top)
            .await
            .map_err(|error| error.of(name))?;
        let config_file = session
            .blob_whole(&found.config.digest, manifest::LARGEST_CONFIG)
            .await
            .map_err(registry)?;
        let read = manifest::parse_config(&config_file.bytes).map_err(refused)?;
        if read.platform.distance().is_none() {
            tracing::warn!(
                image = %name, platform = %read.platform,
                "the image's configuration names another platform than this node's; it is taken \
                 all the same, and if it tells the truth its programs end with \"exec format \
                 error\""
            );
        }
        let config = read.config;
        let pairs = manifest::pair_layers(found.layers, read.diff_ids, self.settings.max_layers)
            .map_err(refused)?;
        let (leases, layers) = if pairs.is_empty() {
            let (lease, layer) = empty::layer(&self.store, &self.limits).await?;
            (vec![lease], vec![layer])
        } else {
            let leases = self.expect(name, &pairs).await?;
            let layers = self.fetch_layers(name, &session, pairs, progress).await?;
            (leases, layers)
        };
        let image = ImageRecord::new(&config_file.digest, &config_file.bytes, config, layers);
        let image = self
            .store
            .commit(ImageRecord {
                repo_tags: name.repo_tag().into_iter().collect(),
                repo_digests: vec![name.repo_digest(&found.digest)],
                ..image
            })
            .await?;
        drop(leases);
        Ok(image)
    }

    /// Fetches the layers that are not here, several at a time.
    async fn fetch_layers(
        &self,
        name: &ImageName,
        session: &Arc<Session>,
        pairs: Vec<(Digest, Blob)>,
        progress: &Arc<PullProgress>,
    ) -> Result<Vec<LayerRecord>, SharedError> {
        let waiting = pairs
            .iter()
            .map(|(_, blob)| LayerProgress::new(&blob.digest, blob.size));
        progress.set_layers(waiting.collect());
        let fetches = pairs
            .into_iter()
            .enumerate()
            .map(|(index, (diff_id, blob))| {
                let wanted = LayerRequest {
                    index,
                    diff_id,
                    blob,
                };
                let layer =
                    self.layers
                        .get(&self.store, session, name, &self.limits, wanted, progress);
                async move { Ok::<_, SharedError>((index, layer.await?)) }
            });
        // Boxed: the borrowed state of the closures would not be general enough for a 'static
        // future otherwise.
        let fetches: Vec<BoxFuture<'_, _>> = fetches.map(|fetch| fetch.boxed()).collect();
        // In whatever order they are done: a slot that is free takes the next layer at once.
        let mut layers: Vec<_> = futures::stream::iter(fetches)
            .buffer_unordered(self.settings.parallel_layers.max(1))
            .try_collect()
            .await?;
        layers.sort_by_key(|(index, _)| *index);
        Ok(layers.into_iter().map(|(_, layer)| layer).collect())
    }

    /// If the image with this digest is here, gives it the name it was pulled by now.
    async fn renew(
        &self,
        name: &ImageName,
        digest: &Digest,
    ) -> Result<Option<Arc<ImageRecord>>, ImagesError> {
        let repo_digest = name.repo_digest(digest);
        let Some(image) = self.store.find(&repo_digest)? else {
            return Ok(None);
        };
        let leases: Vec<_> = image
            .layers
            .iter()
            .map(|layer| self.store.lease(&layer.diff_id))
            .collect();
        // It may have been removed before the leases were there.
        if self.store.find(&repo_digest)?.is_none() {
            return Ok(None);
        }
        let image = ImageRecord {
            repo_tags: name.repo_tag().into_iter().collect(),
            ..ImageRecord::clone(&image)
        };
        let image = self.store.commit(image).await?;
        drop(leases);
        Ok(Some(image))
    }

    /// Leases the layers, and records those that are not here, if they are within the limit and
    /// have a chance to fit on the disk.
    async fn expect(
        &self,
        name: &ImageName,
        pairs: &[(Digest, Blob)],
    ) -> Result<Vec<Lease>, ImagesError> {
        let size = pairs
            .iter()
            .fold(0_u64, |sum, (_, blob)| sum.saturating_add(blob.size));
        let limit = self.settings.max_image_bytes;
        if size > limit {
            return Err(ImagesError::TooLarge {
                image: name.to_string(),
                size,
                limit,
            });
        }
        let leased: Vec<_> = pairs
            .iter()
            .map(|(diff_id, blob)| (self.store.lease(diff_id), blob.size))
            .collect();
        let store = Arc::clone(&self.store);
        let looked = tokio::task::spawn_blocking(move || {
            let stat = rustix::fs::statvfs(store.layers_dir());
            // A file system that does not tell is tried.
            let free = stat.map_or(u64::MAX, |s| s.f_bavail.saturating_mul(s.f_frsize));
            let (present, missing): (Vec<_>, Vec<_>) = leased
                .into_iter()
                .partition(|(lease, _)| store.layer(lease).is_some());
            (present, missing, free)
        });
        let Ok((present, missing, free)) = looked.await else {
            return Err(ImagesError::Ending {
                what: "looking for layers",
            });
        };
        let size = missing
            .iter()
            .fold(0_u64, |sum, (_, size)| sum.saturating_add(*size));
        if size > free {
            return Err(ImagesError::NoSpace {
                image: name.to_string(),
                size,
                free,
                dir: self.store.layers_dir().to_owned(),
            });
        }
        self.store
            .expect_layers(missing.iter().map(|(lease, _)| lease))
            .await?;
        Ok(present
            .into_iter()
            .chain(missing)
            .map(|(lease, _)| lease)
            .collect())
    }
}

/// The image a reference leads to, through indexes.
struct Found {
    /// Of what the reference named itself.
    digest: Digest,
    config: Blob,
    layers: Vec<Blob>,
}

enum ResolveError {
    Registry(RegistryError),
    Manifest(ManifestError),
}

impl ResolveError {
    fn of(self, name: &ImageName) -> ImagesError {
        let image = name.to_string();
        match self {
            Self::Registry(source) => ImagesError::Registry {
                image,
                source: Box::new(source),
            },
            Self::Manifest(source) => ImagesError::Manifest { image, source },
        }
    }
}

async fn resolve(session: &Session, top: Document) -> Result<Found, ResolveError> {
    let parse = |document: &Document| {
        manifest::parse_manifest(&document.bytes, &document.media_type)
            .map_err(ResolveError::Manifest)
    };
    let limit = manifest::LARGEST_MANIFEST;
    let digest = top.digest.clone();
    let mut document = top;
    for _ in 0..DEEPEST_INDEX {
        match parse(&document)? {
            Manifest::Image { config, layers } => {
                return Ok(Found {
                    digest,
                    config,
                    layers,
                });
            }
            Manifest::Index(candidates) => {
                let several = candidates.len() > 1;
                let mut offered = Vec::new();
                let mut chosen = None;
                for next in &candidates {
                    let fetched = session
                        .manifest_by_digest(next, manifest::ACCEPT, limit)
                        .await;
                    let next = fetched.map_err(ResolveError::Registry)?;
                    if several && let Some(other) = platform_elsewhere(session, &next).await? {
                        offered.push(other);
                        continue;
                    }
                    chosen = Some(next);
                    break;
                }
                document =
                    chosen.ok_or_else(|| ResolveError::Manifest(manifest::not_here(offered)))?;
            }
        }
    }
    Err(ResolveError::Manifest(ManifestError::Nested))
}

/// The platform of an image that is among others of an index and not for this node. Its
/// configuration says it, as the index does not.
async fn platform_elsewhere(
    session: &Session,
    document: &Document,
) -> Result<Option<Platform>, ResolveError> {
    let parsed = manifest::parse_manifest(&document.bytes, &document.media_type);
    let Manifest::Image { config, .. } = parsed.map_err(ResolveError::Manifest)? else {
        return Ok(None);
    };
    let file = session
        .blob_whole(&config.digest, manifest::LARGEST_CONFIG)
        .await
        .map_err(ResolveError::Registry)?;
    let platform = manifest::platform_of(&file.bytes).map_err(ResolveError::Manifest)?;
    Ok(Some(platform).filter(|platform| platform.distance().is_none()))
}
