//! When the phases of a start were reached, counted from the start of the process.

use std::sync::Mutex;
use std::time::Instant;

use crate::sync::lock;

/// The marks of one process.
#[derive(Debug)]
pub struct Timing {
    start: Instant,
    marks: Mutex<Vec<(&'static str, u64)>>,
}

impl Timing {
    /// Counts from `start`.
    #[must_use]
    pub fn new(start: Instant) -> Self {
        Timing {
            start,
            marks: Mutex::default(),
        }
    }

    /// Phase `name` is reached.
    pub fn mark(&self, name: &'static str) {
        let micros = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX);
        lock(&self.marks).push((name, micros));
    }

    /// The marks as one JSON object.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let marks = lock(&self.marks);
        marks
            .iter()
            .map(|(name, micros)| ((*name).to_owned(), serde_json::Value::from(*micros)))
            .collect()
    }
}
