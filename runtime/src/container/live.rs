//! What is kept of containers in memory beside the records: who carries a container's output, who
//! waits for its end, which names are being taken. What a pod has is the pod's (`sandbox::Pod`).

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bulkhead_common::lock;
use bulkhead_proto::agent::Exit;
use bulkhead_records::Table;
use tokio::sync::{OwnedMutexGuard, watch};

use super::{ContainerError, samples::Samples};
use crate::{
    config::Config,
    logs::{Checkpoints, Pump},
    records::{ContainerRecord, ContainerState},
};

/// Of a container's out-of-memory kills, one is logged in this time.
const OOM_LOG_EVERY: Duration = Duration::from_secs(10);

/// What the container module keeps in memory, beside the records.
#[derive(Debug)]
pub struct Containers {
    pub(super) checkpoints: Checkpoints,
    pub(super) samples: Samples,
    live: Mutex<HashMap<String, Arc<Live>>>,
    /// Names of containers that are being created and have no record yet.
    names: Mutex<HashMap<Name, String>>,
}

/// One container.
#[derive(Debug)]
pub(super) struct Live {
    /// One at a time starts or removes it.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Held until a start is on record, whichever way it went.
    starting: tokio::sync::Mutex<()>,
    pump: Mutex<Option<Pump>>,
    /// How it ended, by the first word of the guest; the record has it, or is about to.
    exit: Mutex<Option<Exit>>,
    /// Whether a task sees to its end already.
    ending: AtomicBool,
    /// When an out-of-memory kill in it was last logged.
    oom_logged: Mutex<Option<Instant>>,
    /// Counts changes of the record.
    changed: watch::Sender<u64>,
}

type Name = (String, String, u32);

/// A name being taken; free again when dropped (by then the record has it, or the creation failed).
#[derive(Debug)]
pub(super) struct Reservation<'a> {
    containers: &'a Containers,
    name: Name,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        lock(&self.containers.names).remove(&self.name);
    }
}

impl Containers {
    /// Nothing runs yet.
    pub fn new(config: &Config) -> Self {
        Self {
            checkpoints: Checkpoints::new(config.paths.state_dir.join("logs")),
            samples: Samples::default(),
            live: Mutex::default(),
            names: Mutex::default(),
        }
    }

    /// Takes the name of a container that is about to be created.
    pub(super) fn reserve(
        &self,
        records: &Table<ContainerRecord>,
        sandbox: &str,
        name: &str,
        attempt: u32,
        id: &str,
    ) -> Result<Reservation<'_>, ContainerError> {
        let key = (sandbox.to_owned(), name.to_owned(), attempt);
        // Records are looked at with the lock held: a creation that is done drops its reservation
        // only after its record is there.
        let mut names = lock(&self.names);
        let holder = names.get(&key).cloned().or_else(|| {
            let records = records.list();
            let mut records = records.iter();
            let holder = records.find(|record| record.meta.is_named(sandbox, name, attempt));
            holder.map(|record| record.meta.id.clone())
        });
        if let Some(holder) = holder {
            return Err(ContainerError::NameTaken {
                sandbox: key.0,
                name: key.1,
                attempt,
                id: holder,
            });
        }
        names.insert(key.clone(), id.to_owned());
        Ok(Reservation {
            containers: self,
            name: key,
        })
    }

    /// A creation with this name that an earlier daemon did not finish, or that failed and is still
    /// being taken back: nobody is at it any more.
    pub(super) fn cut_off(
        &self,
        records: &Table<ContainerRecord>,
        sandbox: &str,
        name: &str,
        attempt: u32,
    ) -> Option<String> {
        let names = lock(&self.names);
        if names.contains_key(&(sandbox.to_owned(), name.to_owned(), attempt)) {
            return None;
        }
        let found = records.list().into_iter().find(|record| {
            record.status.state == ContainerState::Creating
                && record.meta.is_named(sandbox, name, attempt)
        })?;
        Some(found.meta.id.clone())
    }

    /// Whether this daemon is making the container at this moment.
    pub(super) fn is_being_created(&self, record: &ContainerRecord) -> bool {
        let names = lock(&self.names);
        record.status.state == ContainerState::Creating
            && names.values().any(|id| *id == record.meta.id)
    }

    /// The CPU rate of a container or pod since the last reading, in billionths of a CPU.
    pub(crate) fn rate(&self, id: &str, at: i64, used: u64) -> Option<u64> {
        self.samples.rate(id, at, used)
    }

    pub(super) fn live(&self, id: &str) -> Arc<Live> {
        let mut live = lock(&self.live);
        Arc::clone(live.entry(id.to_owned()).or_insert_with(|| {
            Arc::new(Live {
                turn: Arc::default(),
                starting: tokio::sync::Mutex::default(),
                pump: Mutex::default(),
                exit: Mutex::default(),
                ending: AtomicBool::new(false),
                oom_logged: Mutex::default(),
                changed: watch::channel(0).0,
            })
        }))
    }

    pub(super) fn forget(&self, id: &str) {
        if let Some(live) = lock(&self.live).remove(id) {
            live.notify();
        }
        self.samples.forget(id);
    }
}

impl Live {
    /// The turn to start or remove the container; given back when dropped.
    pub(super) async fn turn(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.turn).lock_owned().await
    }

    /// A start begins; it is decided when the guard is dropped.
    pub(super) async fn starting(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.starting.lock().await
    }

    /// Waits until no start is under way.
    pub(super) async fn decided(&self) {
        drop(self.starting.lock().await);
    }

    pub(super) fn pump(&self) -> Option<Pump> {
        lock(&self.pump).clone()
    }

    pub(super) fn set_pump(&self, pump: Pump) {
        *lock(&self.pump) = Some(pump);
    }

    /// True for the first who sees to its end.
    pub(super) fn begin_ending(&self) -> bool {
        !self.ending.swap(true, Ordering::Relaxed)
    }

    /// Whether an out-of-memory kill is worth a line: a guest can report any number.
    pub(super) fn may_log_oom(&self) -> bool {
        let mut last = lock(&self.oom_logged);
        let due = last.is_none_or(|last| last.elapsed() >= OOM_LOG_EVERY);
        if due {
            *last = Some(Instant::now());
        }
        due
    }

    pub(super) fn exit(&self) -> Option<Exit> {
        *lock(&self.exit)
    }

    /// Keeps how it ended until it is on record. The first word counts.
    pub(super) fn note_exit(&self, exit: Exit) {
        lock(&self.exit).get_or_insert(exit);
    }

    /// Tells those who wait that the record changed.
    pub(super) fn notify(&self) {
        self.changed
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Waits until the container is neither created nor running (or gone); false if that takes
    /// longer than `patience`.
    pub(super) async fn wait_ended(
        &self,
        records: &Table<ContainerRecord>,
        id: &str,
        patience: Duration,
    ) -> bool {
        let running = |record: &ContainerRecord| {
            matches!(
                record.status.state,
                ContainerState::Running | ContainerState::Created
            )
        };
        self.wait_until_not(records, id, patience, running).await
    }

    /// Waits until there is no record of it; false if that takes longer than `patience`.
    pub(super) async fn wait_gone(
        &self,
        records: &Table<ContainerRecord>,
        id: &str,
        patience: Duration,
    ) -> bool {
        self.wait_until_not(records, id, patience, |_| true).await
    }

    async fn wait_until_not(
        &self,
        records: &Table<ContainerRecord>,
        id: &str,
        patience: Duration,
        holds: impl Fn(&ContainerRecord) -> bool,
    ) -> bool {
        let mut changed = self.changed.subscribe();
        let wait = async {
            loop {
                changed.borrow_and_update();
                let still = records.get(id).is_some_and(|record| holds(&record));
                if !still || changed.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(patience, wait).await.is_ok()
    }
}
