//! The saved form of the balloon: how large the driver says it is.

use serde::{Deserialize, Serialize};

/// The version this code writes and reads.
pub const VERSION: u32 = 1;

/// The saved form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedBalloon {
    /// Version of this form.
    pub version: u32,
    /// `actual` in configuration space, which the driver writes.
    pub actual: u32,
}
