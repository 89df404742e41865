//! The saved form of a disk: what the guest's driver has seen of it and relies on.

use serde::{Deserialize, Serialize};

/// The version this code writes and reads.
pub const VERSION: u32 = 1;

/// The saved form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedBlock {
    /// Version of this form.
    pub version: u32,
    /// The size the driver has read.
    pub sectors: u64,
    /// Whether it was told that the disk is read-only.
    pub read_only: bool,
    /// How many queues it was offered.
    pub queues: u16,
    /// The device-specific features it was offered.
    pub features: u64,
}

impl SavedBlock {
    /// What of `live` does not fit this saved form, if anything.
    #[must_use]
    pub fn mismatch(&self, live: &SavedBlock) -> Option<String> {
        if self.version != VERSION {
            return Some(format!(
                "version {} (this VMM reads {VERSION})",
                self.version
            ));
        }
        if (self.sectors, self.read_only, self.queues)
            != (live.sectors, live.read_only, live.queues)
        {
            return Some(format!(
                "saved with {} sectors, read_only {}, {} queues; given {}, {}, {}",
                self.sectors,
                self.read_only,
                self.queues,
                live.sectors,
                live.read_only,
                live.queues
            ));
        }
        // Fewer features than the driver uses would break it; more are harmless, it will not ask.
        if self.features & !live.features != 0 {
            return Some(format!(
                "saved with features {:#x}, the file given has only {:#x}",
                self.features, live.features
            ));
        }
        None
    }
}
