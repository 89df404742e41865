//! Collects every dead child. As PID 1 (or subreaper) the agent inherits all orphans of the guest,
//! so one place waits, and everything else asks it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::process::{WaitOptions, WaitStatus};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use super::exit::ExitStatus;
use crate::mutex::lock;

#[derive(Debug, Default)]
struct Inner {
    awaited: HashMap<i32, oneshot::Sender<ExitStatus>>,
    // Ends of processes that are not awaited yet. Kept only while a launch is under way: a short
    // process can be dead before the launcher's answer with its pid is read.
    early: HashMap<i32, ExitStatus>,
    launches: usize,
}

/// The registry of awaited processes.
#[derive(Debug, Clone, Default)]
pub struct Reaper(Arc<Mutex<Inner>>);

/// While one is held, ends of unknown processes are remembered.
#[derive(Debug)]
pub struct LaunchGuard(Reaper);

impl Drop for LaunchGuard {
    fn drop(&mut self) {
        let mut inner = self.0.lock();
        inner.launches = inner.launches.saturating_sub(1);
        if inner.launches == 0 {
            inner.early.clear();
        }
    }
}

impl Reaper {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.0)
    }

    /// Announces that a process is about to be started.
    pub fn launching(&self) -> LaunchGuard {
        self.lock().launches += 1;
        LaunchGuard(self.clone())
    }

    /// The end of `pid`, which was started under a [`LaunchGuard`] still held.
    pub fn watch(&self, pid: i32) -> oneshot::Receiver<ExitStatus> {
        let (sender, receiver) = oneshot::channel();
        let mut inner = self.lock();
        match inner.early.remove(&pid) {
            // This cannot fail: the receiver is held here.
            Some(status) => drop(sender.send(status)),
            None => drop(inner.awaited.insert(pid, sender)),
        }
        receiver
    }

    fn dead(&self, pid: i32, status: ExitStatus) {
        let mut inner = self.lock();
        match inner.awaited.remove(&pid) {
            // The receiver may be gone; the process is reaped all the same.
            Some(sender) => drop(sender.send(status)),
            None if inner.launches > 0 => drop(inner.early.insert(pid, status)),
            None => {}
        }
    }

    /// Waits for every child that is dead now.
    pub fn sweep(&self) {
        // ECHILD, no children at all, ends the loop too.
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if let Some(status) = convert(status) {
                self.dead(pid.as_raw_nonzero().get(), status);
            }
        }
    }

    /// Reaps until the agent ends.
    pub async fn run(self, mut children: Signal) {
        loop {
            self.sweep();
            if children.recv().await.is_none() {
                return;
            }
        }
    }

    /// Subscribes to SIGCHLD; do this before the first child can die.
    ///
    /// # Errors
    /// If the handler cannot be installed.
    pub fn subscribe() -> std::io::Result<Signal> {
        signal(SignalKind::child())
    }
}

fn convert(status: WaitStatus) -> Option<ExitStatus> {
    status
        .exit_status()
        .map(ExitStatus::Code)
        .or_else(|| status.terminating_signal().map(ExitStatus::Signal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_before_it_is_awaited_is_kept_during_a_launch() {
        let reaper = Reaper::default();
        let guard = reaper.launching();
        reaper.dead(42, ExitStatus::Code(3));
        let mut end = reaper.watch(42);
        assert_eq!(end.try_recv(), Ok(ExitStatus::Code(3)));
        reaper.dead(43, ExitStatus::Code(0));
        drop(guard);
        assert!(reaper.lock().early.is_empty());
        // Without a launch under way, unknown processes are forgotten at once.
        reaper.dead(44, ExitStatus::Signal(9));
        assert!(reaper.lock().early.is_empty());
    }
}
