//! `struct boot_params`, the kernel's "zero page", written field by field at its documented
//! offsets (Documentation/arch/x86/zero-page.rst and boot.rst), and the memory map in it.

use vm_memory::{Bytes, GuestAddress};

use super::error::BootError;
use crate::arch::x86_64::layout;
use crate::memory::{self, GuestMemory};

const SIZE: usize = 4096;
const ACPI_RSDP: usize = 0x070;
const E820_ENTRIES: usize = 0x1e8;
const SETUP_HEADER: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
const HEADER_MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const TYPE_OF_LOADER: usize = 0x210;
const LOADFLAGS: usize = 0x211;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const KERNEL_ALIGNMENT: usize = 0x230;
const CMDLINE_SIZE: usize = 0x238;
const E820_TABLE: usize = 0x2d0;
/// How many entries the zero page has room for.
const E820_MAX: usize = 128;

/// RAM the kernel may use.
const USABLE: u32 = 1;
/// Address space that is taken.
const RESERVED: u32 = 2;
/// ACPI tables, reclaimable in theory.
const ACPI: u32 = 3;

/// One entry of the memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct E820Entry {
    /// First byte.
    pub base: u64,
    /// Length in bytes.
    pub len: u64,
    /// The type, as in the e820 interface.
    pub kind: u32,
}

/// The memory map for `size` bytes of RAM.
#[must_use]
pub fn e820(size: u64) -> Vec<E820Entry> {
    let mut map = vec![
        E820Entry {
            base: 0,
            len: layout::LOW_RAM_END,
            kind: USABLE,
        },
        E820Entry {
            base: layout::ACPI,
            len: layout::ACPI_MAX as u64,
            kind: ACPI,
        },
        E820Entry {
            base: layout::VMGENID,
            len: 0x1000,
            kind: RESERVED,
        },
        E820Entry {
            base: layout::ECAM,
            len: layout::ECAM_SIZE,
            kind: RESERVED,
        },
    ];
    for (base, len) in memory::ranges(size) {
        let start = base.max(layout::HIGH_RAM_START);
        if base + len > start {
            map.push(E820Entry {
                base: start,
                len: base + len - start,
                kind: USABLE,
            });
        }
    }
    map.sort_by_key(|e| e.base);
    map
}

/// Writes the zero page. `cmdline_len` is without the zero byte, `ramdisk` address and size.
pub(super) fn write(
    mem: &GuestMemory,
    cmdline_len: usize,
    ramdisk: (u64, u64),
    rsdp: u64,
) -> Result<(), BootError> {
    let mut page = [0u8; SIZE];
    put(&mut page, ACPI_RSDP, &rsdp.to_le_bytes());
    // One sector of setup code: the field must not be zero, and nothing reads it here.
    put(&mut page, SETUP_HEADER, &[1]);
    put(&mut page, BOOT_FLAG, &0xaa55u16.to_le_bytes());
    put(&mut page, HEADER_MAGIC, b"HdrS");
    put(&mut page, VERSION, &0x020fu16.to_le_bytes());
    // An undefined boot loader, and a kernel that is loaded high.
    put(&mut page, TYPE_OF_LOADER, &[0xff]);
    put(&mut page, LOADFLAGS, &[1]);
    put(&mut page, RAMDISK_IMAGE, &low32(ramdisk.0).to_le_bytes());
    put(&mut page, RAMDISK_SIZE, &low32(ramdisk.1).to_le_bytes());
    put(
        &mut page,
        CMD_LINE_PTR,
        &low32(layout::CMDLINE).to_le_bytes(),
    );
    put(&mut page, KERNEL_ALIGNMENT, &0x0100_0000u32.to_le_bytes());
    put(
        &mut page,
        CMDLINE_SIZE,
        &low32(cmdline_len as u64).to_le_bytes(),
    );
    let map = e820(memory::total(mem));
    for (index, entry) in map.iter().take(E820_MAX).enumerate() {
        let at = E820_TABLE + index * 20;
        put(&mut page, at, &entry.base.to_le_bytes());
        put(&mut page, at + 8, &entry.len.to_le_bytes());
        put(&mut page, at + 16, &entry.kind.to_le_bytes());
    }
    put(
        &mut page,
        E820_ENTRIES,
        &[u8::try_from(map.len()).unwrap_or(u8::MAX)],
    );
    mem.write_slice(&page, GuestAddress(layout::ZERO_PAGE))
        .map_err(|source| BootError::Write {
            what: "the boot parameters",
            source,
        })
}

/// All addresses and sizes given here are below 4 GiB (they lie in low RAM).
fn low32(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn put(page: &mut [u8; SIZE], at: usize, bytes: &[u8]) {
    if let Some(target) = page.get_mut(at..at + bytes.len()) {
        target.copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_is_sorted_and_free_of_overlaps() {
        for size in [64 << 20, 3 << 30, 10u64 << 30] {
            let map = e820(size);
            for pair in map.windows(2) {
                assert!(pair[0].base + pair[0].len <= pair[1].base, "{pair:x?}");
            }
            let usable: u64 = map.iter().filter(|e| e.kind == USABLE).map(|e| e.len).sum();
            assert_eq!(
                usable,
                size - (layout::HIGH_RAM_START - layout::LOW_RAM_END)
            );
        }
    }

    #[test]
    fn the_zero_page_has_its_fields_where_linux_looks() {
        let mem = memory::anonymous(64 << 20).unwrap();
        write(&mem, 17, (0x3ff_0000, 0x1234), 0xe0000).unwrap();
        let at = |o: u64| GuestAddress(layout::ZERO_PAGE + o);
        assert_eq!(mem.read_obj::<u32>(at(0x202)).unwrap(), 0x5372_6448);
        assert_eq!(mem.read_obj::<u32>(at(0x218)).unwrap(), 0x3ff_0000);
        assert_eq!(mem.read_obj::<u32>(at(0x21c)).unwrap(), 0x1234);
        assert_eq!(mem.read_obj::<u64>(at(0x70)).unwrap(), 0xe0000);
        assert_eq!(mem.read_obj::<u8>(at(0x1e8)).unwrap(), 5);
    }
}
