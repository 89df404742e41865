//! What a disk counts.

use serde::Serialize;

/// Counters since the start of the process.
#[derive(Debug, Clone, Default, Serialize)]
pub struct BlockMetrics {
    /// Finished reads.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Finished writes.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Finished flushes.
    pub flushes: u64,
    /// Finished discards and write-zeroes.
    pub discards: u64,
    /// Requests answered with an error because they asked for what is not allowed.
    pub refused: u64,
    /// Requests that failed on the host.
    pub failed: u64,
    /// Chains that could not be answered at all.
    pub malformed: u64,
    /// The engine: io_uring or a thread.
    pub engine: &'static str,
}
