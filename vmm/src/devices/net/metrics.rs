//! What a network device counts. With vhost-net the kernel moves the frames and counts none.

use serde::Serialize;

/// Counters since the start of the process.
#[derive(Debug, Clone, Default, Serialize)]
pub struct NetMetrics {
    /// Frames to the guest.
    pub rx_frames: u64,
    /// Bytes to the guest.
    pub rx_bytes: u64,
    /// Frames from the guest.
    pub tx_frames: u64,
    /// Bytes from the guest.
    pub tx_bytes: u64,
    /// Frames of the guest that made no sense.
    pub tx_bad: u64,
    /// Frames of the guest the host did not take.
    pub tx_dropped: u64,
    /// Buffers of the guest that could not be used.
    pub rx_bad_buffers: u64,
    /// Times the guest had no buffers while frames waited.
    pub rx_starved: u64,
    /// Who moves the frames: "own" or "vhost".
    pub backend: &'static str,
}
