//! One live pod: all that the daemon holds for it in memory. What must survive the daemon is in its
//! record (`records`); how it comes to its end is in `settle`.

use std::{
    collections::{HashMap, HashSet},
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Mutex, MutexGuard, Notify, watch};

use super::cpu_plan::Applied;
use crate::{
    agent::Agent,
    machine::{Machine, Process},
    records::LayerPlace,
    volumes::Followed,
};

/// Between two tries to reach a pod's agent.
const RETRY: Duration = Duration::from_millis(500);

/// The layers and block devices that a pod has.
#[derive(Debug, Default)]
pub(crate) struct PodDisks {
    /// Serials of disks; on the host of layers that are mounted. Some may not be there: those of a
    /// plugging whose end nobody has seen.
    pub(crate) plugged: HashSet<String>,
    /// Layers that are parts of these disks, by their serials.
    pub(crate) places: HashMap<String, LayerPlace>,
}

impl PodDisks {
    /// Whether it has this layer.
    pub(crate) fn has_layer(&self, serial: &str) -> bool {
        self.plugged.contains(serial) || self.places.contains_key(serial)
    }

    /// A disk is gone, with all that are parts of it.
    pub(crate) fn remove(&mut self, serial: &str) {
        self.plugged.remove(serial);
        self.places.retain(|_, place| place.disk != serial);
    }
}

/// A pod whose agent runs.
#[derive(Debug)]
pub struct Pod {
    /// The sandbox id.
    pub id: String,
    /// The service in its guest, or in its namespaces on the host.
    pub agent: Agent,
    /// What it runs in.
    pub machine: Arc<dyn Machine>,
    /// Its VMM, or its agent on the host: the process whose end is the pod's.
    pub process: Arc<Process>,
    /// What disks it has; locked while they come and go.
    pub(crate) disks: Mutex<PodDisks>,
    /// Watches and bridges of its volumes; locked while volumes come and go.
    pub(crate) volumes: Mutex<Followed>,
    /// Held over a resize. Not the pod's turn: stopping it does not wait for a guest that is slow to
    /// give memory back.
    resizing: Mutex<Applied>,
    /// Containers have come or gone.
    containers: Notify,
    /// How much memory its guest wants, MiB; for a pod without a limit.
    demand_mib: AtomicU64,
    over: watch::Sender<bool>,
}

impl Pod {
    /// A pod whose process runs.
    pub fn new(
        id: String,
        agent: Agent,
        machine: Arc<dyn Machine>,
        process: Arc<Process>,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            agent,
            machine,
            process,
            disks: Mutex::default(),
            volumes: Mutex::default(),
            resizing: Mutex::default(),
            containers: Notify::new(),
            demand_mib: AtomicU64::new(0),
            over: watch::channel(false).0,
        })
    }

    /// Becomes true when the pod is out of service; what follows it ends then.
    pub(crate) fn over(&self) -> watch::Receiver<bool> {
        self.over.subscribe()
    }

    /// Follows a stream of the pod's agent until the pod is out of service, or `stream` says that there is
    /// nothing to follow. A stream that ended is begun again, over a new connection, with the state that it
    /// has left.
    pub(crate) async fn follow<S, F>(&self, mut state: S, mut stream: impl FnMut(S) -> F)
    where
        F: Future<Output = ControlFlow<(), S>>,
    {
        let mut over = self.over();
        loop {
            tokio::select! {
                left = stream(state) => match left {
                    ControlFlow::Continue(left) => state = left,
                    ControlFlow::Break(()) => return,
                },
                _over = over.wait_for(|over| *over) => return,
            }
            let gone = tokio::time::timeout(RETRY, over.wait_for(|over| *over));
            if gone.await.is_ok() {
                return;
            }
        }
    }

    /// The turn to resize it, with what the daemon has done about its place on the node.
    pub(super) async fn resizing(&self) -> MutexGuard<'_, Applied> {
        self.resizing.lock().await
    }

    /// A container has ended or is gone: who sees to the pod's place on the node is to look again.
    pub(crate) fn containers_changed(&self) {
        self.containers.notify_one();
    }

    /// Waits for that.
    pub(super) async fn containers_change(&self) {
        self.containers.notified().await;
    }

    /// How much memory its guest wants, MiB; 0 where it has not said.
    pub(super) fn demand_mib(&self) -> u64 {
        self.demand_mib.load(Ordering::Relaxed)
    }

    pub(super) fn demand(&self, mib: u64) {
        self.demand_mib.store(mib, Ordering::Relaxed);
    }

    /// Out of service: what follows the pod ends.
    pub(super) fn end(&self) {
        self.over.send_replace(true);
        // If somebody has them at this moment, they end when the last who holds the pod drops it.
        if let Ok(mut volumes) = self.volumes.try_lock() {
            *volumes = Followed::default();
        }
    }
}
