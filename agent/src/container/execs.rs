//! The execs of a container that were not deleted: their records, and killing one. How they are
//! started is `exec`'s business, how they end `monitor`'s.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;
use tokio::sync::{RwLock, watch as channel};

use super::cgroup;
use super::error::ContainerError;
use crate::process::Process;

/// A further process of a container.
#[derive(Debug)]
pub struct Exec {
    /// The process that was asked for.
    pub process: Process,
    pub(super) cgroup: Option<Arc<ExecCgroup>>,
}

impl Exec {
    /// Kills it with everything that it started and that is still in its cgroup. Once the exec's
    /// own process has ended by itself this does nothing: what it left running keeps running.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn kill(&self) -> Result<(), ContainerError> {
        if self.process.exit.get().is_some() {
            return Ok(());
        }
        if let Some(cgroup) = &self.cgroup {
            cgroup.kill()?;
        }
        // Root of a privileged container can have moved it elsewhere.
        Ok(self.process.signal(Signal::KILL)?)
    }
}

/// The cgroup of one exec.
#[derive(Debug)]
pub struct ExecCgroup {
    /// As a directory.
    pub path: PathBuf,
    killed: AtomicBool,
}

impl ExecCgroup {
    /// One that was just made.
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            killed: AtomicBool::new(false),
        }
    }

    /// Whether it was killed from outside.
    pub fn is_killed(&self) -> bool {
        self.killed.load(Ordering::Relaxed)
    }

    fn kill(&self) -> Result<(), cgroup::CgroupError> {
        self.killed.store(true, Ordering::Relaxed);
        cgroup::kill(&self.path)
    }
}

/// The execs of a container that were not deleted.
#[derive(Debug, Default)]
pub struct Execs {
    // None: the id is taken while the process is being made.
    pub(super) slots: HashMap<String, Option<Arc<Exec>>>,
    // Whether the container is being deleted.
    pub(super) closing: channel::Sender<bool>,
    // Read-locked by each that is being started.
    pub(super) starting: Arc<RwLock<()>>,
}

impl Execs {
    /// One that runs or has run.
    pub fn get(&self, id: &str) -> Option<Arc<Exec>> {
        self.slots.get(id).cloned().flatten()
    }

    /// Lets no more start. Taking the write lock of the result waits for those that are being
    /// started.
    pub fn close(&self) -> Arc<RwLock<()>> {
        self.closing.send_replace(true);
        Arc::clone(&self.starting)
    }

    /// Takes [`close`](Self::close) back.
    pub fn reopen(&self) {
        self.closing.send_replace(false);
    }

    /// Forgets all of them; their processes are dead.
    pub fn clear(&mut self) {
        for exec in self.slots.drain().filter_map(|(_, exec)| exec) {
            exec.process.stop_pumps();
        }
    }
}
