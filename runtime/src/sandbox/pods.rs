//! Handles of the pods that run: what is needed to talk to each. Rebuilt from the records when the
//! daemon starts.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use tokio::sync::{OwnedMutexGuard, Semaphore, watch};

use super::{Machine, SandboxError, machine, names::Reserved};
use crate::{
    agent::Agent,
    config::Config,
    records::VmExit,
    vmm::{Control, Process},
};

/// A pod whose agent runs.
#[derive(Debug)]
pub struct Pod {
    /// The sandbox id.
    pub id: String,
    /// The service in its guest, or in its namespaces on the host.
    pub agent: Agent,
    /// What it runs in.
    pub machine: Machine,
    /// Its VMM, or its agent on the host: the process whose end is the pod's.
    pub process: Arc<Process>,
    /// How that ended, once it has and the records say so.
    pub ended: watch::Receiver<Option<VmExit>>,
}

impl Pod {
    /// Its VMM's control socket.
    ///
    /// # Errors
    /// For a pod on the host, which has none.
    pub fn vmm(&self) -> Result<&Control, SandboxError> {
        machine::control(&self.id, &self.machine)
    }
}

/// All running pods by id, and what pods compete for.
#[derive(Debug)]
pub struct Pods {
    live: RwLock<HashMap<String, Arc<Pod>>>,
    reserved: Mutex<Reserved>,
    /// One at a time stops or removes a pod.
    turns: Turns,
    /// One at a time resizes a pod.
    resizes: Turns,
    /// Boots at one time: more of them than CPUs only make each other late.
    pub(super) boots: Semaphore,
}

impl Pods {
    /// None run yet.
    pub fn new(config: &Config) -> Self {
        Self {
            live: RwLock::default(),
            reserved: Mutex::default(),
            turns: Turns::default(),
            resizes: Turns::default(),
            boots: Semaphore::new(config.boot.parallel),
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

    pub(crate) fn remove(&self, id: &str) -> Option<Arc<Pod>> {
        self.live
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id)
    }

    pub(super) fn reserved(&self) -> MutexGuard<'_, Reserved> {
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The turn to stop or remove a pod; given back when dropped.
    pub(super) async fn turn(&self, id: &str) -> OwnedMutexGuard<()> {
        self.turns.of(id).await
    }

    /// The turn to resize a pod; given back when dropped. Not that to stop it, which does not wait
    /// for a guest that is slow to give memory back.
    pub(super) async fn resize_turn(&self, id: &str) -> OwnedMutexGuard<()> {
        self.resizes.of(id).await
    }

    pub(super) fn forget_turn(&self, id: &str) {
        self.resizes.forget(id);
        self.turns.forget(id);
    }
}

/// One at a time, for each pod.
#[derive(Debug, Default)]
struct Turns(Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>);

impl Turns {
    async fn of(&self, id: &str) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(turns.entry(id.to_owned()).or_default())
        };
        turn.lock_owned().await
    }

    fn forget(&self, id: &str) {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        turns.remove(id);
    }
}
