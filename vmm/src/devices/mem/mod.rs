//! virtio-mem (virtio 1.2 §5.15): memory that comes and goes while the guest runs. The region it
//! lies in is mapped from the start and costs nothing until the guest uses it; the device itself
//! is plugged with the first resize, so that a boot does not pay for it.
//!
//! `request` reads what the driver asks (pure), `region` knows which blocks are plugged and what
//! may be asked (pure), `device` is what the transport sees, `handle` what the machine holds.

mod device;
mod handle;
mod metrics;
mod persist;
pub mod region;
pub mod request;

pub use device::MemDevice;
pub use handle::MemHandle;
pub use metrics::MemMetrics;
pub use persist::SavedMem;

#[cfg(test)]
mod tests;
