//! virtio-vsock (virtio 1.2 §5.10) with a back end in user space: one Unix socket per pod.
//!
//! `packet` reads and writes packet headers, `handshake` the `CONNECT` line of host clients,
//! `connection` is one stream with its credit in both directions, `muxer` the table of them with
//! their Unix sockets, `device` ties the muxer to the rings. Only streams; what is spoken over
//! them is not this module's business.

mod connection;
mod device;
pub mod handshake;
mod metrics;
mod muxer;
pub mod packet;
mod persist;
mod sockets;

pub use device::{VsockConfig, VsockDevice, VsockError};
pub use metrics::VsockMetrics;
pub use persist::SavedVsock;

#[cfg(test)]
mod tests;
