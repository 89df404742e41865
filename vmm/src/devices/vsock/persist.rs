//! The saved form of the vsock device: its address and how far its ports are used, and nothing of
//! its connections, which end with a transport reset event (virtio 1.2 §5.10.6.7) when the VM is
//! restored.

use serde::{Deserialize, Serialize};

/// The version this code writes and reads.
pub const VERSION: u32 = 2;

/// The saved form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedVsock {
    /// Version of this form.
    pub version: u32,
    /// The guest's address when it was saved. A restore may give it another: the event makes the
    /// driver read it again.
    pub cid: u64,
    /// The host port the next host client gets. Linux keeps a connection that has ended under its
    /// ports until the program closes its socket, and refuses another under the same.
    pub next_port: u32,
}
