//! From an archive to images on this node.

use std::{error::Error, sync::Arc};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};

use super::{
    contents::{self, Found, FoundLayer},
    error::ArchiveError,
    spool::{Checked, Spool},
};
use crate::{
    digest::Digest,
    error::ImagesError,
    layer::Limits,
    manifest::{self, ImageConfig},
    pull::{PullSettings, channel, empty, store_layer},
    reference::ImageName,
    registry::{Blob, Sink as _},
    store::{ImageRecord, LayerRecord, Lease, Store},
};

/// Imports archives into a store.
#[derive(Debug)]
pub(crate) struct Importer {
    store: Arc<Store>,
    settings: PullSettings,
    limits: Arc<Limits>,
}

/// An image of an archive with its configuration read, and what it is made of.
#[derive(Debug)]
struct Plan {
    id: Digest,
    config_file: Vec<u8>,
    config: ImageConfig,
    /// Each layer's diff_id, and where it is.
    layers: Vec<(Digest, FoundLayer)>,
    names: Vec<ImageName>,
    digest: Option<Digest>,
}

fn failed(source: ArchiveError) -> ImagesError {
    ImagesError::Archive {
        action: "import",
        source: Box::new(source),
    }
}

impl Importer {
    pub(crate) fn new(store: Arc<Store>, settings: PullSettings) -> Self {
        Self {
            store,
            limits: Arc::new(settings.layer_limits.clone()),
            settings,
        }
    }

    /// Takes an archive in, and makes its images images of this node, by `name` instead of their
    /// own names if that is given.
    pub(crate) async fn import<E: Error + Send + Sync + 'static>(
        &self,
        archive: impl Stream<Item = Result<Bytes, E>> + Send,
        name: Option<ImageName>,
    ) -> Result<Vec<Arc<ImageRecord>>, ImagesError> {
        let spool = Arc::new(self.receive(archive).await?);
        let (reading, most) = (Arc::clone(&spool), self.settings.max_layers);
        let plans = blocking(move || {
            let found = contents::images(&reading)?;
            if let (Some(_), count @ 2..) = (&name, found.len()) {
                return Err(ArchiveError::Several { count });
            }
            let plans = found
                .into_iter()
                .map(|image| plan(image, name.as_ref(), most));
            plans.collect::<Result<Vec<_>, _>>()
        })
        .await?
        .map_err(failed)?;
        let mut images = Vec::new();
        for plan in plans {
            images.push(self.image(&spool, plan).await?);
        }
        Ok(images)
    }

    async fn receive<E: Error + Send + Sync + 'static>(
        &self,
        archive: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<Spool, ImagesError> {
        let (mut sender, receiver) = channel(None);
        let (dir, limit) = (
            self.store.layers_dir().to_owned(),
            self.settings.max_image_bytes,
        );
        let spooling = blocking(move || Spool::read(receiver, &dir, limit));
        let feeding = async {
            futures::pin_mut!(archive);
            while let Some(piece) = archive.next().await {
                match piece {
                    Ok(bytes) => {
                        if !sender.put(bytes).await {
                            return Ok(());
                        }
                    }
                    Err(source) => {
                        return Err(ArchiveError::Broken {
                            source: Box::new(source),
                        });
                    }
                }
            }
            sender.end().await;
            Ok(())
        };
        let (fed, spooled) = futures::join!(feeding, spooling);
        fed.map_err(failed)?;
        spooled?.map_err(failed)
    }

    async fn image(&self, spool: &Arc<Spool>, plan: Plan) -> Result<Arc<ImageRecord>, ImagesError> {
        let called = match plan.names.first() {
            Some(name) => name.to_string(),
            None => plan.id.to_string(),
        };
        tracing::info!(image = %called, layers = plan.layers.len(), "import begins");
        let (leases, layers) = if plan.layers.is_empty() {
            let (lease, layer) = empty::layer(&self.store, &self.limits).await?;
            (vec![lease], vec![layer])
        } else {
            self.layers(spool, &called, plan.layers).await?
        };
        let record = ImageRecord {
            repo_tags: contents::tags(&plan.names),
            repo_digests: contents::repo_digests(&plan.names, plan.digest.as_ref()),
            ..ImageRecord::new(&plan.id, &plan.config_file, plan.config, layers)
        };
        let image = self.store.commit(record).await?;
        drop(leases);
        tracing::info!(image = %called, id = %image.id, "import done");
        Ok(image)
    }

    async fn layers(
        &self,
        spool: &Arc<Spool>,
        called: &str,
        layers: Vec<(Digest, FoundLayer)>,
    ) -> Result<(Vec<Lease>, Vec<LayerRecord>), ImagesError> {
        let leases: Vec<_> = layers
            .iter()
            .map(|(diff_id, _)| self.store.lease(diff_id))
            .collect();
        self.store.expect_layers(leases.iter()).await?;
        let mut records = Vec::new();
        for (diff_id, layer) in layers {
            let (spool, store, limits) = (
                Arc::clone(spool),
                Arc::clone(&self.store),
                Arc::clone(&self.limits),
            );
            let called = called.to_owned();
            records.push(
                blocking(move || store_one(&spool, &store, &limits, &called, diff_id, layer))
                    .await??,
            );
        }
        Ok((leases, records))
    }
}

/// One layer, from the archive or, if it is here already, from the store. Blocks.
fn store_one(
    spool: &Spool,
    store: &Arc<Store>,
    limits: &Limits,
    called: &str,
    diff_id: Digest,
    layer: FoundLayer,
) -> Result<LayerRecord, ImagesError> {
    let (part, blob_size) = spool.open(&layer.name, "an image").map_err(failed)?;
    let digest = layer.digest.clone().unwrap_or_else(|| diff_id.clone());
    let record = |file_size, opaque_root, implicit_dirs| LayerRecord {
        diff_id: diff_id.clone(),
        digest: digest.clone(),
        blob_size,
        file_size,
        opaque_root,
        implicit_dirs,
    };
    if let Some(file) = store.layer(&store.lease(&diff_id)) {
        return Ok(record(file.size, file.opaque_root, file.implicit_dirs));
    }
    let mut reader = Checked::new(part, layer.digest);
    let unusable = match store_layer(&mut reader, store, &diff_id, limits) {
        Ok(info) => return Ok(record(info.file_size, info.opaque_root, info.implicit_dirs)),
        Err(unusable) => unusable,
    };
    // A blob that is not what its name says explains everything else.
    Err(match reader.wrong_digest() {
        Some(actual) => failed(ArchiveError::Digest {
            name: layer.name,
            actual,
        }),
        None => unusable.of(called.to_owned(), digest, diff_id.clone()),
    })
}

/// What an image needs, checked as far as it can be without its layers.
fn plan(image: Found, name: Option<&ImageName>, most_layers: usize) -> Result<Plan, ArchiveError> {
    let read = manifest::parse_config(&image.config)?;
    // Blobs in the place of layers, for the rules that pulls have.
    let blobs = (0_u64..).zip(&image.layers).map(|(number, _)| Blob {
        digest: Digest::of(&number.to_le_bytes()),
        size: number,
    });
    let pairs = manifest::pair_layers(blobs.collect(), read.diff_ids, most_layers)?;
    let layers = pairs.into_iter().filter_map(|(diff_id, blob)| {
        let layer = image.layers.get(usize::try_from(blob.size).ok()?)?;
        Some((diff_id, layer.clone()))
    });
    Ok(Plan {
        id: Digest::of(&image.config),
        layers: layers.collect(),
        config: read.config,
        names: match name {
            Some(name) => vec![name.clone()],
            None => image.names,
        },
        config_file: image.config,
        digest: image.digest,
    })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ImagesError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| ImagesError::Ending {
        what: "importing an archive",
    })
}
