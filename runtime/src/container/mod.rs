//! Containers: their life in a pod's guest, their output, their statistics.

use std::sync::Arc;

use crate::{app::App, config::Config, sandbox::Pod};

/// What the container module keeps in memory, beside the records.
#[derive(Debug)]
pub struct Containers {}

impl Containers {
    /// Nothing runs yet.
    pub fn new(_config: &Config) -> Self {
        Self {}
    }
}

/// A pod's guest is there: after RunPodSandbox, and after a restart of the daemon for each pod
/// that still runs (its containers' events, exits and output are then caught up with).
pub async fn pod_ready(_app: &Arc<App>, _pod: &Arc<Pod>) {}

/// A pod is being stopped: end its containers, in bounded time, and see their output to its end.
/// The guest still runs (unless it has died); after this it is powered off.
pub async fn pod_stopping(_app: &Arc<App>, _sandbox_id: &str) {}

/// A pod's guest is gone, stopped or not: containers still counted as running have ended.
pub async fn pod_gone(_app: &Arc<App>, _sandbox_id: &str, _why: &str) {}

/// A pod's record is about to go: remove its containers' records and what they hold (images).
pub async fn pod_removed(_app: &Arc<App>, _sandbox_id: &str) {}
