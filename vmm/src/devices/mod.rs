//! The devices a guest sees. Each virtio device has the same set of files; see `virtio::device`.
