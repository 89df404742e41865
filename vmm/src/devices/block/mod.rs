//! virtio-blk (virtio 1.2 §5.2): a disk over a raw file or block device given by descriptor, or over
//! several files one after the other.
//!
//! `request` turns what the guest wrote into a checked action, which becomes a `job`; `engine`
//! carries jobs out asynchronously (io_uring, or one worker thread where the kernel refuses it),
//! `backing` says which file has a byte of the disk, `running` ties all to the rings, `device` is what the transport sees, `persist` is the saved
//! form. Image formats are not this module's business.
//!
//! How many disks a guest can have is its interrupt vectors' matter: Linux takes two for each
//! (configuration and queue), and x86 has about 200 per online processor, so that with one
//! processor the probe of roughly the 95th disk fails with ENOSPC.

pub mod backing;
mod device;
mod engine;
mod job;
mod metrics;
mod persist;
pub mod request;
mod running;
mod uring;
mod worker;

pub use backing::{Backing, Part};
pub use device::{BlockConfig, BlockDevice, BlockError};
pub use engine::EngineKind;
pub use metrics::BlockMetrics;
pub use persist::SavedBlock;

#[cfg(test)]
mod tests;
