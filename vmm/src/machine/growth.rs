//! What can be added to a machine, and what has been; `resize` adds it.

use bulkhead_contract::vmm::Config;

use crate::devices::mem::MemHandle;
use crate::devices::mem::region::BLOCK;
use crate::memory::{self, GuestMemory, MemoryError};

pub(super) const MIB: u64 = 1 << 20;

/// What can be added to a machine, and what has been.
#[derive(Debug)]
pub(super) struct Growth {
    pub(super) possible_vcpus: u8,
    pub(super) boot_mib: u64,
    pub(super) base: u64,
    pub(super) size: u64,
    /// How much of the region KVM knows, from its beginning.
    pub(super) known: u64,
    pub(super) handle: Option<MemHandle>,
}

impl Growth {
    pub(super) fn new(config: &Config) -> Self {
        let most = config.max_memory_mib.unwrap_or(config.memory_mib);
        let more = most.saturating_sub(config.memory_mib) * MIB;
        Growth {
            possible_vcpus: config.possible_vcpus(),
            boot_mib: config.memory_mib,
            base: memory::growth_base(config.memory_mib * MIB),
            size: more / BLOCK * BLOCK,
            known: 0,
            handle: None,
        }
    }

    /// Guest memory with room for what can be added.
    pub(super) fn room(&self, boot: &GuestMemory) -> Result<GuestMemory, MemoryError> {
        match self.size {
            0 => Ok(boot.clone()),
            size => memory::with_growth(boot, self.base, size),
        }
    }

    /// Whether memory was ever added.
    pub(super) fn is_active(&self) -> bool {
        self.handle.is_some()
    }

    /// How much is added now, bytes.
    pub(super) fn plugged(&self) -> u64 {
        self.handle.as_ref().map_or(0, |h| h.region().plugged())
    }
}
