//! Starting, pausing and ending vCPU threads.
//!
//! A thread outside of its gate is in, or on its way into, KVM_RUN; a thread in the gate holds
//! nothing and has no unfinished instruction. Whoever changes what is wanted kicks the threads
//! afterwards, so that none stays in KVM_RUN.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::sync::lock;

/// What the threads should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RunState {
    /// Wait in the gate.
    Pause = 0,
    /// Run the guest.
    Run = 1,
    /// End the thread.
    Stop = 2,
}

impl RunState {
    fn from_u8(value: u8) -> Self {
        match value {
            0 => RunState::Pause,
            1 => RunState::Run,
            _ => RunState::Stop,
        }
    }
}

/// The gate all vCPU threads of a VM share.
#[derive(Debug)]
pub struct Gate {
    requested: AtomicU8,
    /// How many threads are outside of the gate.
    out: Mutex<usize>,
    changed: Condvar,
}

impl Default for Gate {
    fn default() -> Self {
        Gate {
            requested: AtomicU8::new(RunState::Pause as u8),
            out: Mutex::new(0),
            changed: Condvar::new(),
        }
    }
}

impl Gate {
    /// What the threads are to do now.
    #[must_use]
    pub fn requested(&self) -> RunState {
        RunState::from_u8(self.requested.load(Ordering::SeqCst))
    }

    /// Changes what the threads are to do. The caller kicks the threads after this.
    pub fn request(&self, state: RunState) {
        let _out = lock(&self.out);
        self.requested.store(state as u8, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// A thread waits to be let out; false means it should end.
    #[must_use]
    pub fn leave(&self) -> bool {
        let mut out = lock(&self.out);
        loop {
            match self.requested() {
                RunState::Run => {
                    *out += 1;
                    return true;
                }
                RunState::Stop => return false,
                RunState::Pause => {
                    out = self
                        .changed
                        .wait(out)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// A thread is back.
    pub fn enter(&self) {
        let mut out = lock(&self.out);
        *out = out.saturating_sub(1);
        self.changed.notify_all();
    }

    /// Waits until all threads are in the gate; the number of those that are not, at the end.
    ///
    /// # Errors
    /// How many threads are still out when `limit` has passed.
    pub fn wait_all_in(&self, limit: Duration) -> Result<(), usize> {
        let deadline = Instant::now() + limit;
        let mut out = lock(&self.out);
        while *out > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(*out);
            }
            out = self
                .changed
                .wait_timeout(out, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn threads_run_pause_and_end_as_wanted() {
        let gate = Arc::new(Gate::default());
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let gate = Arc::clone(&gate);
                std::thread::spawn(move || {
                    let mut rounds = 0;
                    while gate.leave() {
                        while gate.requested() == RunState::Run {
                            std::thread::yield_now();
                        }
                        rounds += 1;
                        gate.enter();
                    }
                    rounds
                })
            })
            .collect();
        gate.request(RunState::Run);
        while *gate.out.lock().unwrap() < 3 {
            std::thread::yield_now();
        }
        assert_eq!(gate.wait_all_in(Duration::from_millis(1)), Err(3));
        gate.request(RunState::Pause);
        gate.wait_all_in(Duration::from_secs(10)).unwrap();
        gate.request(RunState::Stop);
        for thread in threads {
            assert_eq!(thread.join().unwrap(), 1);
        }
    }
}
