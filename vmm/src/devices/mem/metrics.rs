//! What the memory device counts.

use serde::Serialize;

/// Counters since the start of the process, and how things stand.
#[derive(Debug, Clone, Default, Serialize)]
pub struct MemMetrics {
    /// How much the guest should have, bytes.
    pub requested_bytes: u64,
    /// How much it has.
    pub plugged_bytes: u64,
    /// Requests that were done.
    pub done: u64,
    /// Requests for more than is wanted.
    pub refused: u64,
    /// Requests that make no sense.
    pub malformed: u64,
    /// Bytes given back to the host.
    pub freed_bytes: u64,
    /// Ranges the host did not take back.
    pub failed: u64,
}
