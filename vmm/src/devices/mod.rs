//! The devices a guest sees. Each virtio device has the same set of files; see `virtio::device`.

pub mod block;
pub mod buffers;
pub mod ring;
pub mod vsock;
