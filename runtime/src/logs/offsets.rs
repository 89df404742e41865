//! How far the two streams of a process have come: the unit in which agent, log and checkpoint agree.

use serde::{Deserialize, Serialize};

/// Bytes of each stream, counted from its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offsets {
    /// Of standard output.
    pub stdout: u64,
    /// Of standard error.
    pub stderr: u64,
}
