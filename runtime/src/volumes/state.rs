//! What the daemon keeps in memory of pods' volumes.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::guest::Live;

/// By pod. Its lock is held while volumes come and go.
#[derive(Debug, Default)]
pub struct Volumes(Mutex<HashMap<String, Arc<tokio::sync::Mutex<Live>>>>);

impl Volumes {
    pub(super) fn pod(&self, id: &str) -> Arc<tokio::sync::Mutex<Live>> {
        let mut pods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(pods.entry(id.to_owned()).or_default())
    }

    /// A pod is gone: nothing of it is followed any more.
    pub fn forget_pod(&self, id: &str) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
    }
}
