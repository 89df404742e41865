//! virtio-balloon (virtio 1.2 §5.5), for one purpose: free page reporting, so that memory the
//! guest has freed goes back to the host. The balloon itself stays at zero pages; its two queues
//! work nevertheless, as every balloon device has them.
//!
//! `request` reads page lists, `device` is what the transport sees.

mod device;
mod metrics;
mod persist;
pub mod request;

pub use device::BalloonDevice;
pub use metrics::BalloonMetrics;
pub use persist::SavedBalloon;

#[cfg(test)]
mod tests;
