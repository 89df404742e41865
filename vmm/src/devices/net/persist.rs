//! The saved form of a network device: what it offered. Its tap is another one after a restore,
//! and so may be its address: the agent sets both up anew.

use serde::{Deserialize, Serialize};

/// The version this code writes and reads.
pub const VERSION: u32 = 1;

/// The saved form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedNet {
    /// Version of this form.
    pub version: u32,
    /// The device-specific features offered.
    pub features: u64,
    /// The greatest size of a queue.
    pub queue_size: u16,
}
