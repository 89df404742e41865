//! The layer of an image that has none (`FROM scratch` with a configuration alone): an empty
//! directory, so that a container has a root.

use std::{io, sync::Arc};

use crate::{
    digest::Digest,
    error::ImagesError,
    layer::{self, LayerError, Limits},
    store::{LayerRecord, Lease, Store},
};

/// What it is called in errors: no registry has it.
const NAME: &str = "an image without layers";

/// Makes it, or finds it in the store. Its diff_id is that of no bytes at all.
pub(crate) async fn layer(
    store: &Arc<Store>,
    limits: &Arc<Limits>,
) -> Result<(Lease, LayerRecord), ImagesError> {
    let nothing = Digest::of(b"");
    let lease = store.lease(&nothing);
    store.expect_layers(std::iter::once(&lease)).await?;
    let (store, limits, diff_id) = (Arc::clone(store), Arc::clone(limits), nothing.clone());
    let made = tokio::task::spawn_blocking(move || -> Result<_, LayerError> {
        if let Some(file) = store.layer(&lease) {
            return Ok((lease, file.size));
        }
        let pending = layer::convert(io::empty(), store.layers_dir(), &limits, &mut |_| ())?;
        let (_, info) = pending.commit(&format!("{}.erofs", diff_id.hex()))?;
        Ok((lease, info.file_size))
    });
    let (lease, file_size) = match made.await {
        Ok(made) => made.map_err(|source| ImagesError::Layer {
            image: NAME.to_owned(),
            digest: nothing.clone(),
            source: Box::new(source),
        })?,
        Err(_) => {
            return Err(ImagesError::Ending {
                what: "making an empty layer",
            });
        }
    };
    let record = LayerRecord {
        diff_id: nothing.clone(),
        digest: nothing,
        blob_size: 0,
        file_size,
        opaque_root: false,
        implicit_dirs: Vec::new(),
    };
    Ok((lease, record))
}
