//! What the balloon counts.

use serde::Serialize;

/// Counters since the start of the process.
#[derive(Debug, Clone, Default, Serialize)]
pub struct BalloonMetrics {
    /// Reports of free pages.
    pub reports: u64,
    /// Bytes given back after reports.
    pub reported_bytes: u64,
    /// Bytes given back by inflating.
    pub inflated_bytes: u64,
    /// Buffers that could not be used.
    pub malformed: u64,
    /// Ranges the host did not take back.
    pub failed: u64,
}
