//! The saved form of the file server.
//!
//! Files the guest holds are descriptors here, which no other process has. So a snapshot is
//! refused while there are any; one of a guest that has not mounted the share, or holds nothing but
//! its root, continues with the share it is given at the restore.

use serde::{Deserialize, Serialize};

/// The version this code writes and reads.
pub const VERSION: u32 = 2;

/// The saved form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedFs {
    /// Version of this form.
    pub version: u32,
    /// The name the guest mounts it by.
    pub tag: String,
    /// The guest has it mounted.
    pub mounted: bool,
    /// What it agreed on then (FUSE's flags of INIT).
    pub agreed: u64,
}
