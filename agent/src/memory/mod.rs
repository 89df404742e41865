//! What memory the containers of a guest may use, together, and how much the guest wants to have. A pod
//! without a limit starts small: before its guest runs out, more is asked for, and until it is there the
//! containers are slowed down and not killed (memory.high of cgroup v2). What is enough, `policy` says
//! (pure); a container's own limits are its cgroup's, elsewhere.

mod policy;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bulkhead_proto::agent::MemoryPolicy;
use tokio::io::Interest;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use self::policy::{Levels, Policy, Use};
use crate::async_fd;
use crate::blocking::{self, EndedEarly};
use crate::stats::text;

/// How often the guest looks whether memory it asked for is there, and for how long at this rate: the
/// kernel brings it online in pieces, and each lets the containers go on.
const WATCH: Duration = Duration::from_millis(10);
const WATCH_FOR: Duration = Duration::from_secs(5);
/// And after that, while the host lets it wait.
const WATCH_SLOWLY: Duration = Duration::from_millis(250);
/// How often a guest that has grown looks whether it could do with less. One that has not, sleeps.
const REVIEW: Duration = Duration::from_secs(30);

/// A limit could not be set, or the containers' memory not be watched.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A file of the kernel's.
    #[error("{what} {}", path.display())]
    File {
        /// What was attempted.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// Blocking work did not return.
    #[error(transparent)]
    EndedEarly(#[from] EndedEarly),
}

/// The containers' memory.
#[derive(Debug)]
pub struct Memory {
    cgroup: PathBuf,
    policy: watch::Sender<Policy>,
    demand: watch::Sender<u64>,
    task: OnceLock<()>,
}

impl Memory {
    /// Of the containers below this cgroup.
    #[must_use]
    pub fn new(cgroup: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            cgroup,
            policy: watch::channel(Policy::default()).0,
            demand: watch::channel(0).0,
            task: OnceLock::new(),
        })
    }

    /// How much the guest wants, bytes; 0 as long as it wants nothing.
    pub fn demand(&self) -> watch::Receiver<u64> {
        self.demand.subscribe()
    }

    /// From now on this holds. Begins to watch if the guest can grow.
    ///
    /// # Errors
    /// If the kernel refuses a limit.
    pub async fn set(self: &Arc<Self>, asked: &MemoryPolicy) -> Result<(), MemoryError> {
        let used = used(&self.cgroup)?;
        let policy = self.policy.borrow().updated(asked, used.total);
        apply(self.cgroup.clone(), policy.levels(used)).await?;
        self.policy.send_replace(policy);
        if policy.is_elastic() && self.task.set(()).is_ok() {
            let memory = Arc::clone(self);
            tokio::spawn(async move {
                if let Err(error) = memory.follow().await {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "the guest keeps its size"
                    );
                }
            });
        }
        Ok(())
    }

    async fn follow(&self) -> Result<(), MemoryError> {
        let path = self.cgroup.join("memory.events");
        let failed = |error| MemoryError::File {
            what: "watching",
            path: path.clone(),
            error,
        };
        let file = File::open(&path).map_err(failed)?;
        let events = async_fd::watch(file, Interest::PRIORITY).map_err(failed)?;
        let mut policies = self.policy.subscribe();
        let mut applied = None;
        let mut waiting_since: Option<Instant> = None;
        loop {
            let policy = *policies.borrow_and_update();
            let used = used(&self.cgroup)?;
            let levels = policy.levels(used);
            if applied != Some(levels) {
                apply(self.cgroup.clone(), levels).await?;
                applied = Some(levels);
            }
            let wanted = policy.wanted(used);
            self.demand.send_if_modified(|demand| {
                let changes = wanted.is_some_and(|wanted| wanted != *demand);
                *demand = wanted.unwrap_or(*demand);
                changes
            });
            waiting_since = policy
                .has_less_than(*self.demand.borrow(), used)
                .then(|| waiting_since.unwrap_or_else(Instant::now));
            let pause = match waiting_since {
                Some(since) if since.elapsed() < WATCH_FOR => Some(WATCH),
                Some(_) => Some(WATCH_SLOWLY),
                None => policy.has_grown(used).then_some(REVIEW),
            };
            let change = async {
                tokio::select! {
                    // The kernel wakes who waits each time the file's text changes, ten milliseconds
                    // apart at least.
                    ready = events.ready(Interest::PRIORITY) => ready.map_err(failed)?.clear_ready(),
                    _changed = policies.changed() => {}
                }
                Ok::<_, MemoryError>(())
            };
            match pause {
                Some(pause) => timeout(pause, change).await.unwrap_or(Ok(()))?,
                None => change.await?,
            }
        }
    }
}

fn used(cgroup: &Path) -> Result<Use, MemoryError> {
    let read = |path: &Path| {
        fs::read_to_string(path).map_err(|error| MemoryError::File {
            what: "reading",
            path: path.to_owned(),
            error,
        })
    };
    let meminfo = read(Path::new("/proc/meminfo"))?;
    let kilobytes = |key| text::value(&meminfo, key).unwrap_or(0).saturating_mul(1024);
    let stat = read(&cgroup.join("memory.stat"))?;
    let current = read(&cgroup.join("memory.current"))?;
    let current: u64 = current.trim().parse().unwrap_or(0);
    Ok(Use {
        total: kilobytes("MemTotal:").saturating_sub(kilobytes("Hugetlb:")),
        working_set: current.saturating_sub(text::value(&stat, "inactive_file").unwrap_or(0)),
    })
}

/// A lower level than what is used makes the kernel free some before the write returns.
async fn apply(cgroup: PathBuf, levels: Levels) -> Result<(), MemoryError> {
    blocking::run(move || {
        for (name, level) in [("memory.max", levels.max), ("memory.high", levels.high)] {
            let path = cgroup.join(name);
            let value = level.map_or("max".to_owned(), |bytes| bytes.to_string());
            fs::write(&path, value).map_err(|error| MemoryError::File {
                what: "setting",
                path,
                error,
            })?;
        }
        Ok(())
    })
    .await
}
