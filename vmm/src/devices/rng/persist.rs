//! The saved form of the entropy device. It has no state.

use serde::{Deserialize, Serialize};

/// The version this code writes and reads.
pub const VERSION: u32 = 1;

/// The saved form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedRng {
    /// Version of this form.
    pub version: u32,
}
