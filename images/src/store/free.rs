//! Removing layers' files: of what nobody has any more, and of pulls that nobody came back to.

use std::{fs, io, sync::Arc};

use bulkhead_common::lock;

use super::{Store, detached, file_name};
use crate::error::ImagesError;

impl Store {
    /// Removes layers of unfinished pulls that nobody came back for; with `all`, because the disk
    /// is full, also those of late.
    pub async fn prune_parts(self: &Arc<Self>, all: bool) -> Result<(), ImagesError> {
        let parts: Vec<String> = self
            .parts
            .list()
            .iter()
            .filter(|part| all || self.is_expired(part))
            .map(|part| part.layer.clone())
            .collect();
        if parts.is_empty() {
            return Ok(());
        }
        let store = Arc::clone(self);
        detached("removing unfinished layers", async move {
            let leased = |layer: &String| {
                let leases = lock(&store.leases);
                leases.contains_key(layer)
            };
            let parts: Vec<_> = parts.into_iter().filter(|layer| !leased(layer)).collect();
            store.parts.batch(Vec::new(), parts.clone()).await?;
            store.free_layers(parts.iter().map(String::as_str)).await
        })
        .await
    }

    /// Removes those of these layers' files that nobody has.
    pub(super) async fn free_layers(
        self: &Arc<Self>,
        layers: impl Iterator<Item = &str>,
    ) -> Result<(), ImagesError> {
        let layers: Vec<String> = layers.map(str::to_owned).collect();
        let store = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            for layer in layers {
                store.free_layer(&layer)?;
            }
            Ok(())
        })
        .await
        .unwrap_or(Err(ImagesError::Ending {
            what: "removing layers",
        }))
    }

    pub(super) fn free_layer(&self, layer: &str) -> Result<(), ImagesError> {
        let path = self.layers_dir.join(file_name(layer));
        let doomed = self.layers_dir.join(format!(".{layer}.removed"));
        {
            // With the lock a pull cannot lease it between the look and the rename; the removal
            // itself, slow for a large file, is done without.
            let leases = lock(&self.leases);
            if leases.contains_key(layer) || self.is_wanted(layer) {
                return Ok(());
            }
            match fs::rename(&path, &doomed) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                other => other,
            }
            .map_err(|source| ImagesError::Disk {
                action: "remove",
                path,
                source,
            })?;
        }
        fs::remove_file(&doomed).map_err(|source| ImagesError::Disk {
            action: "remove",
            path: doomed,
            source,
        })
    }
}
