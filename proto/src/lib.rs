//! The wire contracts of Bulkhead and nothing else: the CRI v1 services as a kubelet speaks them,
//! the service of the agent inside a pod's virtual machine, and the daemon's own for archives of
//! images.
//!
//! The CRI names, numbers and types are fixed by Kubernetes; `tests/descriptor.rs` holds the
//! compiled form against a table, so that a slip is caught.
#![forbid(unsafe_code)]

/// CRI v1: `RuntimeService` and `ImageService` (Kubernetes 1.37, 43 RPCs).
#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::nursery,
    clippy::restriction
)]
pub mod cri {
    tonic::include_proto!("runtime.v1");
}

/// The agent's service, spoken over vsock between the daemon and a pod's guest.
#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::nursery,
    clippy::restriction
)]
pub mod agent {
    tonic::include_proto!("bulkhead.agent.v1");

    /// The guest's vsock port on which the agent serves `Agent`.
    pub const AGENT_PORT: u32 = 1024;
    /// The host's vsock port the agent dials once it serves; it writes one `Ready` message,
    /// length-delimited, and closes.
    pub const READY_PORT: u32 = 1025;
}

/// The daemon's service for images as files, on its CRI socket.
#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::nursery,
    clippy::restriction
)]
pub mod archives {
    tonic::include_proto!("bulkhead.archives.v1");
}

impl std::fmt::Debug for agent::SocketVolume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the token: requests are logged.
        f.debug_struct("SocketVolume")
            .field("name", &self.name)
            .field("port", &self.port)
            .field("ownership", &self.ownership)
            .finish_non_exhaustive()
    }
}

pub mod session;

/// The compiled descriptor set of all services (a serialised `FileDescriptorSet`).
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
