//! One layer: fetched, unpacked, converted and checked in one pass, and shared by all pulls that
//! want it at the same time.

use std::{
    collections::HashMap,
    io::{self, BufRead, Read as _},
    sync::{Arc, Mutex},
};

use bulkhead_common::lock;
use futures::{
    FutureExt as _,
    future::{BoxFuture, WeakShared},
};

use super::{
    progress::{LayerProgress, LayerState, PullProgress},
    stream,
};
use crate::{
    digest::Digest,
    error::{ImagesError, SharedError},
    layer::{self, LayerError, LayerInfo, Limits},
    reference::ImageName,
    registry::{Blob, RegistryError, Session},
    store::{FileInfo, LayerRecord, Store},
};

/// Joins another pull's work at most this often before doing it alone.
const MOST_JOINS: u32 = 3;

type Work = BoxFuture<'static, Result<FileInfo, SharedError>>;
type Running = HashMap<Digest, (WeakShared<Work>, Arc<LayerProgress>)>;

/// The layers that are being fetched, by diff_id.
#[derive(Debug, Default)]
pub(super) struct SingleFlight {
    running: Mutex<Running>,
}

/// A layer that a pull needs.
#[derive(Debug, Clone)]
pub(super) struct LayerRequest {
    /// Its place among the layers.
    pub index: usize,
    pub diff_id: Digest,
    pub blob: Blob,
}

impl SingleFlight {
    /// Gets one layer, expected and leased, into the store, or finds it there.
    pub(super) async fn get(
        &self,
        store: &Arc<Store>,
        session: &Arc<Session>,
        name: &ImageName,
        limits: &Arc<Limits>,
        wanted: LayerRequest,
        progress: &PullProgress,
    ) -> Result<LayerRecord, SharedError> {
        let mut joins = 0;
        let info = loop {
            let (work, layer_progress, mine) = {
                let mut running = lock(&self.running);
                running.retain(|_, (work, _)| work.upgrade().is_some());
                let found = running
                    .get(&wanted.diff_id)
                    .and_then(|(work, progress)| Some((work.upgrade()?, Arc::clone(progress))));
                match found {
                    Some((work, progress)) if joins < MOST_JOINS => (work, progress, false),
                    _ => {
                        let progress = LayerProgress::new(&wanted.blob.digest, wanted.blob.size);
                        let work = fetch(
                            Arc::clone(store),
                            Arc::clone(session),
                            name.clone(),
                            Arc::clone(limits),
                            wanted.clone(),
                            Arc::clone(&progress),
                        )
                        .boxed()
                        .shared();
                        if let Some(weak) = work.downgrade() {
                            running.insert(wanted.diff_id.clone(), (weak, Arc::clone(&progress)));
                        }
                        (work, progress, true)
                    }
                }
            };
            progress.replace(wanted.index, layer_progress);
            match work.await {
                Ok(info) => break info,
                Err(error) if mine => return Err(error),
                // Another pull's failure is not ours: it may have had another registry, other
                // credentials, or a blob that lies about this layer.
                Err(_) => joins += 1,
            }
        };
        Ok(LayerRecord {
            diff_id: wanted.diff_id,
            digest: wanted.blob.digest,
            blob_size: wanted.blob.size,
            file_size: info.size,
            opaque_root: info.opaque_root,
            implicit_dirs: info.implicit_dirs,
        })
    }
}

async fn fetch(
    store: Arc<Store>,
    session: Arc<Session>,
    name: ImageName,
    limits: Arc<Limits>,
    wanted: LayerRequest,
    progress: Arc<LayerProgress>,
) -> Result<FileInfo, SharedError> {
    let (look, lease) = (Arc::clone(&store), store.lease(&wanted.diff_id));
    let looked = tokio::task::spawn_blocking(move || look.layer(&lease)).await;
    let Ok(present) = looked else {
        return Err(ImagesError::Ending {
            what: "looking for a layer",
        }
        .into());
    };
    if let Some(info) = present {
        progress.set(LayerState::Present);
        return Ok(info);
    }
    let mut wrong_places = 0;
    let info = loop {
        progress.set(LayerState::Fetching);
        let error = match fetch_once(&store, &session, &name, &limits, &wanted, &progress).await {
            Ok(info) => break info,
            Err(error) => error,
        };
        // Each time round there is one place less.
        let wrong = session.wrong_places(&wanted.blob.digest);
        match wrong.filter(|wrong| is_wrong_blob(&error) && *wrong > wrong_places) {
            Some(wrong) => wrong_places = wrong,
            None => return Err(error.into()),
        }
        tracing::warn!(
            image = %name, error = %bulkhead_common::chain(&error),
            "a host gave wrong bytes; the layer is fetched from the next one"
        );
    };
    tracing::debug!(
        image = %name, layer = %wanted.blob.digest, blob_size = wanted.blob.size,
        tar_size = info.bytes, entries = info.entries, file_size = info.file_size,
        "layer stored"
    );
    if info.dropped_xattrs > 0 {
        tracing::warn!(
            image = %name, layer = %wanted.blob.digest, dropped = info.dropped_xattrs,
            "extended attributes of this layer mean nothing in a guest and were left out"
        );
    }
    let info = FileInfo {
        size: info.file_size,
        opaque_root: info.opaque_root,
        implicit_dirs: info.implicit_dirs,
    };
    progress.set(LayerState::Done);
    Ok(info)
}

/// Whether the host that a blob came from gave other bytes than it should have.
fn is_wrong_blob(error: &ImagesError) -> bool {
    matches!(error, ImagesError::Registry { source, .. } if source.is_wrong_content())
}

/// Fetches and converts, from one host or, where connections broke, several.
async fn fetch_once(
    store: &Arc<Store>,
    session: &Session,
    name: &ImageName,
    limits: &Arc<Limits>,
    wanted: &LayerRequest,
    progress: &Arc<LayerProgress>,
) -> Result<LayerInfo, ImagesError> {
    let (mut sender, receiver) = stream::channel(Some(Arc::clone(progress)));
    let download = async {
        session.blob(&wanted.blob, &mut sender).await?;
        // Nobody there to hear of the end: the conversion has failed and says why.
        sender.end().await;
        Ok::<(), RegistryError>(())
    };
    let (expected, store, limits) = (
        wanted.diff_id.clone(),
        Arc::clone(store),
        Arc::clone(limits),
    );
    let others = session.has_several_places(&wanted.blob.digest);
    let conversion =
        tokio::task::spawn_blocking(move || convert(receiver, &store, &expected, &limits, others));
    let (downloaded, converted) = futures::join!(download, conversion);

    match downloaded {
        Ok(()) | Err(RegistryError::Receiver { .. }) => {}
        // The conversion's error is then only that its input broke off or was wrong.
        Err(source) => {
            return Err(ImagesError::Registry {
                image: name.to_string(),
                source: Box::new(source),
            });
        }
    }
    match converted {
        Ok(Ok(info)) => Ok(info),
        Ok(Err(unusable)) => {
            let (digest, expected) = (wanted.blob.digest.clone(), wanted.diff_id.clone());
            Err(unusable.of(name.to_string(), digest, expected))
        }
        Err(_) => Err(ImagesError::Ending {
            what: "unpacking a layer",
        }),
    }
}

/// Why a layer is not stored.
#[derive(Debug)]
pub(crate) enum Unusable {
    /// It cannot be read, or its file not be written.
    Layer(Box<LayerError>),
    /// It unpacks to something else: to this.
    DiffId(Digest),
    /// The records failed.
    Store(ImagesError),
}

impl Unusable {
    /// As an error of an image's layer.
    pub(crate) fn of(self, image: String, digest: Digest, expected: Digest) -> ImagesError {
        match self {
            Self::Layer(source) => ImagesError::Layer {
                image,
                digest,
                source,
            },
            Self::DiffId(actual) => ImagesError::DiffId {
                image,
                digest,
                expected,
                actual,
            },
            Self::Store(source) => source,
        }
    }
}

/// The blocking half. With `others` a layer that makes no sense is received to its end all the
/// same: only then is it known whether the image is bad or the host that sent it.
fn convert(
    mut receiver: stream::Receiver,
    store: &Store,
    expected: &Digest,
    limits: &Limits,
    others: bool,
) -> Result<LayerInfo, Unusable> {
    let result = store_layer(&mut receiver, store, expected, limits);
    if others
        && let Err(Unusable::Layer(error)) = &result
        && error.is_of_content()
    {
        // The download's own error says whether the bytes were wrong.
        let _ = io::copy(&mut receiver, &mut io::sink());
    }
    result
}

/// Makes the file of a leased and expected layer. Reads to the true end, which the reader tells
/// only if the blob's digest was right, then compares the diff_id, and only then gives the file
/// its name. Blocks.
pub(crate) fn store_layer(
    reader: impl BufRead,
    store: &Store,
    expected: &Digest,
    limits: &Limits,
) -> Result<LayerInfo, Unusable> {
    let failed = |error| Unusable::Layer(Box::new(error));
    let input = |offset| move |source| failed(LayerError::Input { offset, source });
    let mut unpacked = stream::unpack(reader).map_err(input(0))?;
    let pending =
        layer::convert(&mut unpacked, store.layers_dir(), limits, &mut |_| ()).map_err(failed)?;
    let bytes = pending.info().bytes;
    // Of what stands behind the packed data only the digest counts; nothing of it is kept.
    let mut rest = unpacked.into_inner();
    let mut buffer = [0; 8192];
    loop {
        match rest.read(&mut buffer) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(input(bytes)(error)),
        }
    }
    let actual = Digest::from_sha256(&pending.info().diff_id);
    if actual != *expected {
        return Err(Unusable::DiffId(actual));
    }
    store.finishing(expected).map_err(Unusable::Store)?;
    let name = format!("{}.erofs", expected.hex());
    let (_, info) = pending.commit(&name).map_err(failed)?;
    Ok(info)
}
