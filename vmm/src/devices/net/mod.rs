//! virtio-net (virtio 1.2 §5.1) over a tap device given by descriptor.
//!
//! `header` checks what the guest puts in front of a frame, `tap` is the tap's few ioctls,
//! `frames` moves frames in the VMM itself, `vhost` hands the rings to the kernel instead,
//! `device` is what the transport sees. Addresses and routes are not this module's business.

mod device;
mod frames;
pub mod header;
mod metrics;
mod persist;
mod tap;
mod vhost;

pub use device::{NetConfig, NetDevice, NetError};
pub use metrics::NetMetrics;
pub use persist::SavedNet;

#[cfg(test)]
mod tests;
