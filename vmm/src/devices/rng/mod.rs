//! virtio-rng (virtio 1.2 §5.4): random bytes of the host's kernel for the guest's.
//!
//! `request` says how much of a chain is filled, `device` fills it. How the guest mixes them in is
//! its own business.

mod device;
mod metrics;
mod persist;
pub mod request;

pub use device::RngDevice;
pub use metrics::RngMetrics;
pub use persist::SavedRng;

#[cfg(test)]
mod tests;
