//! What the vsock device counts.

use serde::Serialize;

/// Counters since the start of the process.
#[derive(Debug, Clone, Default, Serialize)]
pub struct VsockMetrics {
    /// Packets to the guest.
    pub packets_to_guest: u64,
    /// Bytes of data to the guest.
    pub bytes_to_guest: u64,
    /// Packets from the guest.
    pub packets_from_guest: u64,
    /// Bytes of data from the guest.
    pub bytes_from_guest: u64,
    /// Connections the host opened.
    pub host_connects: u64,
    /// Connections the guest opened.
    pub guest_connects: u64,
    /// Connections refused: too many, nobody listens, or a malformed request.
    pub refused: u64,
    /// Connections ended by us because the guest violated the protocol.
    pub violations: u64,
    /// Connections and handshakes that ran out of time.
    pub timeouts: u64,
    /// Packets and buffers that made no sense.
    pub malformed: u64,
    /// Connections now.
    pub connections: u64,
}
