//! How far a pull is, for people who watch it. Written by the pull, read by anybody.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU8, AtomicU64, Ordering},
};

use bulkhead_common::lock;
use serde::{Deserialize, Serialize};

use crate::{digest::Digest, reference::ImageName};

/// Progress of one pull.
#[derive(Debug, Default)]
pub struct PullProgress {
    layers: Mutex<Vec<Arc<LayerProgress>>>,
}

/// Progress of one layer; pulls that share the layer share it.
#[derive(Debug)]
pub struct LayerProgress {
    digest: String,
    size: u64,
    fetched: AtomicU64,
    state: AtomicU8,
}

/// What happens to a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerState {
    /// Not begun.
    Waiting,
    /// Being fetched and converted.
    Fetching,
    /// It was here already.
    Present,
    /// Fetched, checked and stored.
    Done,
}

/// A copy of a layer's progress at one moment; in the verbose ImageStatus as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerSnapshot {
    /// The blob's digest.
    pub digest: String,
    /// The blob's size.
    pub size: u64,
    /// Bytes of it that have come.
    pub fetched: u64,
    /// What happens to it.
    pub state: LayerState,
}

impl PullProgress {
    pub(super) fn set_layers(&self, layers: Vec<Arc<LayerProgress>>) {
        *lock(&self.layers) = layers;
    }

    pub(super) fn replace(&self, index: usize, layer: Arc<LayerProgress>) {
        let mut layers = lock(&self.layers);
        if let Some(place) = layers.get_mut(index) {
            *place = layer;
        }
    }

    /// One line for the log.
    pub(super) fn tell(&self, image: &ImageName) {
        let layers = self.snapshot();
        let done = |state| matches!(state, LayerState::Present | LayerState::Done);
        tracing::info!(
            %image,
            layers = layers.len(),
            layers_done = layers.iter().filter(|layer| done(layer.state)).count(),
            fetched = layers.iter().map(|layer| layer.fetched).sum::<u64>(),
            size = layers.iter().map(|layer| layer.size).sum::<u64>(),
            "pull goes on"
        );
    }

    /// How far it is now; empty until the manifest is there.
    pub fn snapshot(&self) -> Vec<LayerSnapshot> {
        let layers = lock(&self.layers);
        layers.iter().map(|layer| layer.snapshot()).collect()
    }
}

impl LayerProgress {
    pub(super) fn new(digest: &Digest, size: u64) -> Arc<Self> {
        Arc::new(Self {
            digest: digest.to_string(),
            size,
            fetched: AtomicU64::new(0),
            state: AtomicU8::new(0),
        })
    }

    pub(super) fn add(&self, bytes: u64) {
        self.fetched.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn set(&self, state: LayerState) {
        let code = match state {
            LayerState::Waiting => 0,
            LayerState::Fetching => {
                self.fetched.store(0, Ordering::Relaxed);
                1
            }
            LayerState::Present => 2,
            LayerState::Done => 3,
        };
        self.state.store(code, Ordering::Relaxed);
    }

    fn snapshot(&self) -> LayerSnapshot {
        LayerSnapshot {
            digest: self.digest.clone(),
            size: self.size,
            fetched: self.fetched.load(Ordering::Relaxed),
            state: match self.state.load(Ordering::Relaxed) {
                0 => LayerState::Waiting,
                1 => LayerState::Fetching,
                2 => LayerState::Present,
                _ => LayerState::Done,
            },
        }
    }
}
