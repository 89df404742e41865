//! What the calls work on.

use std::sync::Arc;

use tokio::sync::Notify;

use crate::container::Containers;
use crate::memory::Memory;
use crate::stats::usage::Usage;

/// Everything the calls work on.
#[derive(Debug, Clone)]
pub struct Agent(pub(super) Arc<State>);

/// What all clones of an [`Agent`] share.
#[derive(Debug)]
pub(super) struct State {
    containers: Arc<Containers>,
    // Held by the calls that change the pod as a whole: one at a time.
    pub(super) sandbox: tokio::sync::Mutex<()>,
    pub(super) usage: Usage,
    pub(super) memory: Arc<Memory>,
    // Notified once PowerOff was answered.
    pub(super) power_off: Notify,
}

impl Agent {
    /// An agent over these containers.
    pub fn new(containers: Arc<Containers>) -> Self {
        let memory = Memory::new(containers.paths.containers_cgroup());
        Self(Arc::new(State {
            containers,
            memory,
            sandbox: tokio::sync::Mutex::default(),
            usage: Usage::default(),
            power_off: Notify::new(),
        }))
    }

    /// Returns when a daemon has had the agent powered off.
    pub async fn wait_power_off(&self) {
        self.0.power_off.notified().await;
    }

    /// What sessions work on.
    pub fn containers(&self) -> &Arc<Containers> {
        &self.0.containers
    }
}
