//! Handles of the pods that run: what is needed to talk to each. Rebuilt from the records when the
//! daemon starts.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use super::SandboxError;
use crate::{agent::Agent, config::Config, vmm::Control};

/// A pod whose guest runs.
#[derive(Debug)]
pub struct Pod {
    /// The sandbox id.
    pub id: String,
    /// The service in its guest.
    pub agent: Agent,
    /// Its VMM.
    pub vmm: Control,
}

/// All running pods by id.
#[derive(Debug)]
pub struct Pods {
    live: RwLock<HashMap<String, Arc<Pod>>>,
}

impl Pods {
    /// None run yet.
    pub fn new(_config: &Config) -> Self {
        Self {
            live: RwLock::default(),
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
            why: "its virtual machine does not run".to_owned(),
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
        self.live
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(pod.id.clone(), pod);
    }

    pub(crate) fn remove(&self, id: &str) -> Option<Arc<Pod>> {
        self.live
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id)
    }
}
