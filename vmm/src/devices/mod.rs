//! The devices a guest sees. Each virtio device has the same set of files; see `virtio::device`.

pub mod balloon;
pub mod block;
pub mod console;
pub mod fs;
pub mod mem;
pub mod net;
pub mod rng;
pub mod serial;
pub mod vsock;

#[cfg(test)]
mod random_driver;
#[cfg(test)]
pub(crate) mod testing;
