//! The saved form of the memory device: what is wanted and what is plugged. What the memory holds
//! is not in it.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// The version this code writes and reads.
pub const VERSION: u32 = 1;

/// The saved form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedMem {
    /// Version of this form.
    pub version: u32,
    /// Where the region begins.
    pub addr: u64,
    /// Its size.
    pub size: u64,
    /// How much the guest should have.
    pub requested: u64,
    /// Guest addresses that are plugged.
    pub plugged: Vec<Range<u64>>,
}
