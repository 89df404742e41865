//! virtio-blk (virtio 1.2 §5.2): a disk over a raw file or block device given by descriptor.
//!
//! `request` turns what the guest wrote into a checked action, `engine` carries actions out
//! asynchronously (io_uring, or one worker thread where the kernel refuses it), `running` ties both
//! to the rings, `device` is what the transport sees, `persist` is the saved form. Image formats are not this module's business.

mod device;
mod engine;
mod metrics;
mod persist;
pub mod request;
mod running;
mod uring;
mod worker;

pub use device::{BlockConfig, BlockDevice, BlockError};
pub use engine::EngineKind;
pub use metrics::BlockMetrics;
pub use persist::SavedBlock;

#[cfg(test)]
mod tests;
