//! The pods that run, by id, and what pods compete for: names, user ids, turns, boots. Rebuilt from
//! the records when the daemon starts.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use bulkhead_common::lock;
use tokio::sync::{OwnedMutexGuard, Semaphore, watch};

use super::{Pod, SandboxError, names::Reserved};
use crate::{config::Config, task::KeyedMutex};

/// All running pods by id, and what pods compete for.
#[derive(Debug)]
pub struct Pods {
    live: RwLock<HashMap<String, Arc<Pod>>>,
    reserved: Mutex<Reserved>,
    /// One at a time stops, settles or removes a pod.
    turns: KeyedMutex,
    /// Pods that are being settled until it succeeds.
    settling: Mutex<HashSet<String>>,
    /// Boots at one time: more of them than CPUs only make each other late.
    pub(super) boots: Arc<Semaphore>,
    /// Changes when the host's wall clock is set.
    host_clock: watch::Sender<()>,
}

impl Pods {
    /// None run yet.
    pub fn new(config: &Config) -> Self {
        Self {
            live: RwLock::default(),
            reserved: Mutex::default(),
            turns: KeyedMutex::default(),
            settling: Mutex::default(),
            boots: Arc::new(Semaphore::new(config.boot.parallel)),
            host_clock: watch::channel(()).0,
        }
    }

    /// The pod with this id, if its guest runs.
    pub fn get(&self, id: &str) -> Option<Arc<Pod>> {
        self.live
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(id)
            .cloned()
    }

    /// The pod with this id, or an error that says it does not run.
    pub fn ready(&self, id: &str) -> Result<Arc<Pod>, SandboxError> {
        self.get(id).ok_or_else(|| SandboxError::NotReady {
            id: id.to_owned(),
            why: "it does not run".to_owned(),
        })
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<Pod>> {
        self.live
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    pub(crate) fn insert(&self, pod: Arc<Pod>) {
        let mut live = self.live.write().unwrap_or_else(PoisonError::into_inner);
        live.insert(pod.id.clone(), pod);
    }

    /// Takes a pod out of service: who has it still finds it over.
    pub(crate) fn remove(&self, id: &str) {
        let mut live = self.live.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(pod) = live.remove(id) {
            pod.end();
        }
    }

    /// Changes when the host's wall clock is set.
    pub(super) fn host_clock_set(&self) -> watch::Receiver<()> {
        self.host_clock.subscribe()
    }

    /// The host's wall clock was set.
    pub(super) fn note_host_clock(&self) {
        self.host_clock.send_replace(());
    }

    pub(super) fn reserved(&self) -> MutexGuard<'_, Reserved> {
        lock(&self.reserved)
    }

    /// The turn to stop, settle or remove a pod; given back when dropped.
    pub(super) async fn turn(&self, id: &str) -> OwnedMutexGuard<()> {
        self.turns.lock(id).await
    }

    /// Whether the caller is the one to settle a pod until it succeeds; then it says when it is done.
    pub(super) fn begin_settling(&self, id: &str) -> bool {
        lock(&self.settling).insert(id.to_owned())
    }

    pub(super) fn end_settling(&self, id: &str) {
        lock(&self.settling).remove(id);
    }
}
