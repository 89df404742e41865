//! How long each step of the agent's start took, for `Hello`.

use std::sync::Mutex;

use crate::clock;
use crate::mutex::lock;

static STEPS: Mutex<Vec<(&'static str, u64)>> = Mutex::new(Vec::new());

/// Notes that a step has ended now.
pub fn done(name: &'static str) {
    let mut steps = lock(&STEPS);
    steps.push((name, clock::boottime_ns()));
}

/// The steps so far, in order, with CLOCK_BOOTTIME of their ends.
pub fn all() -> Vec<(&'static str, u64)> {
    lock(&STEPS).clone()
}
