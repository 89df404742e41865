//! What the entropy device counts.

use serde::Serialize;

/// Counters since the start of the process.
#[derive(Debug, Clone, Default, Serialize)]
pub struct RngMetrics {
    /// Requests served.
    pub requests: u64,
    /// Bytes given.
    pub bytes: u64,
    /// Buffers that could not be used.
    pub malformed: u64,
    /// The host's kernel gave none.
    pub failed: u64,
}
