//! The devices a guest sees. Each virtio device has the same set of files; see `virtio::device`.

pub mod block;
pub mod buffers;
pub mod console;
pub mod ports;
pub mod ring;
pub mod serial;
pub mod vsock;
