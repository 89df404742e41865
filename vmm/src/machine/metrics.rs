//! The counters of a machine and its devices.

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::Machine;
use super::memory_map::MemoryMap;
use crate::memory::{self, GuestMemory};
use crate::sync::lock;

fn host_ranges(mem: &GuestMemory) -> Vec<(u64, u64)> {
    mem.iter()
        .filter_map(|region| {
            let start = region.get_host_address(MemoryRegionAddress(0)).ok()? as u64;
            Some((start, start + region.len()))
        })
        .collect()
}

impl Machine {
    /// The counters of the metrics request.
    pub fn metrics(&self, map: Option<&mut MemoryMap>) -> serde_json::Value {
        let mem = self.vm.memory();
        let resident = map.and_then(|m| m.resident(&host_ranges(mem)).ok());
        let devices: serde_json::Map<String, serde_json::Value> = self
            .functions
            .iter()
            .map(|function| {
                let function = lock(function);
                (function.id().to_owned(), function.metrics())
            })
            .collect();
        serde_json::json!({
            "state": self.state.name(),
            "guest_memory_bytes": memory::total(self.vm.boot_memory()) + self.growth.plugged(),
            "vcpus": self.vcpus.len(),
            "guest_resident_bytes": resident.map(|(guest, _)| guest),
            "vmm_rss_bytes": resident.map(|(_, vmm)| vmm),
            "console_lost_bytes": self.bus.ports.serial().log().lost(),
            "boot_us": self.timing.to_json(),
            "devices": devices,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_of_this_process_counts_touched_guest_pages() {
        use vm_memory::{Bytes, GuestAddress};
        let mem = memory::anonymous(8 << 20).unwrap();
        mem.write_slice(&[1; 4096], GuestAddress(0x10000)).unwrap();
        let mut map = MemoryMap::open().unwrap();
        let (guest, vmm) = map.resident(&host_ranges(&mem)).unwrap();
        assert!(guest >= 4096, "{guest}");
        assert!(vmm > 100_000);
    }
}
