//! The page tables and the descriptor table the first vCPU starts with.

use vm_memory::{Bytes, GuestAddress};

use super::error::BootError;
use crate::arch::x86_64::layout;
use crate::memory::GuestMemory;

/// Present, writable.
const TABLE: u64 = 0x3;
/// Present, writable, a 2 MiB page.
const PAGE_2M: u64 = 0x83;

/// Null, unused, 64-bit code at 0x10, data at 0x18, as the 64-bit boot protocol asks
/// (`__BOOT_CS`, `__BOOT_DS`), and a task segment for VMX's entry checks.
pub const GDT_ENTRIES: [u64; 5] = [
    0,
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x008f_8b00_0000_ffff,
];

/// Identity-maps the first GiB, which holds kernel, parameters and command line.
pub(super) fn write(mem: &GuestMemory) -> Result<(), BootError> {
    let put = |value: u64, at: u64| {
        mem.write_obj(value, GuestAddress(at))
            .map_err(|source| BootError::Write {
                what: "the boot page tables",
                source,
            })
    };
    put(layout::PDPT | TABLE, layout::PML4)?;
    put(layout::PD | TABLE, layout::PDPT)?;
    for index in 0..512u64 {
        put(index << 21 | PAGE_2M, layout::PD + index * 8)?;
    }
    for (index, entry) in (0u64..).zip(GDT_ENTRIES) {
        put(entry, layout::GDT + index * 8)?;
    }
    Ok(())
}
