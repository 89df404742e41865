//! How long each step of a pod's start takes: for its status and the log.

use std::{sync::Mutex, time::Instant};

use bulkhead_common::lock;

use crate::records::Phase;

/// The steps of one start. Steps may overlap.
#[derive(Debug)]
pub struct Timeline {
    start: Instant,
    phases: Mutex<Vec<Phase>>,
}

impl Timeline {
    pub(crate) fn start() -> Self {
        Self {
            start: Instant::now(),
            phases: Mutex::default(),
        }
    }

    /// Does a step and notes it.
    pub(crate) async fn step<T>(&self, name: &str, work: impl Future<Output = T>) -> T {
        let from = Instant::now();
        let done = work.await;
        self.note(name, from, Instant::now());
        done
    }

    fn note(&self, name: &str, from: Instant, to: Instant) {
        lock(&self.phases).push(Phase {
            name: name.to_owned(),
            started_ms: ms(from.saturating_duration_since(self.start)),
            took_ms: ms(to.saturating_duration_since(from)),
        });
    }

    /// Notes a step another clock measured, that ended now.
    pub(crate) fn measured(&self, name: &str, took_ms: f64) {
        let started_ms = (ms(self.start.elapsed()) - took_ms).max(0.0);
        lock(&self.phases).push(Phase {
            name: name.to_owned(),
            started_ms,
            took_ms,
        });
    }

    /// All steps so far, and the whole as `total`.
    pub(crate) fn finish(&self) -> Vec<Phase> {
        self.note("total", self.start, Instant::now());
        lock(&self.phases).clone()
    }
}

fn ms(time: std::time::Duration) -> f64 {
    // Microseconds are enough, and read better in JSON.
    (time.as_secs_f64() * 1e6).round() / 1e3
}
