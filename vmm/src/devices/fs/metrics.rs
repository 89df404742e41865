//! What the file server counts.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Serialize, Serializer};

/// A counter that several threads advance.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Advances it.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
}

impl Serialize for Counter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0.load(Ordering::Relaxed))
    }
}

/// Counters since the start of the process.
#[derive(Debug, Default, Serialize)]
pub struct FsMetrics {
    /// Messages served.
    pub requests: Counter,
    /// Of these, answered with an error (a file that is not there is one).
    pub errors: Counter,
    /// READ requests.
    pub reads: Counter,
    /// Bytes they gave.
    pub bytes_read: Counter,
    /// WRITE requests.
    pub writes: Counter,
    /// Bytes they took.
    pub bytes_written: Counter,
    /// Refused because the guest held too many files.
    pub limited: Counter,
    /// Malformed messages.
    pub malformed: Counter,
}
