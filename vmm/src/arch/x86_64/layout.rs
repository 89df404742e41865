//! The guest's physical address map and port map, in one place.
//!
//! Nothing here does anything; every other module takes its addresses from this table.

/// The global descriptor table the first vCPU starts with.
pub const GDT: u64 = 0x500;
/// The stack pointer at entry (the kernel sets its own at once).
pub const BOOT_STACK: u64 = 0x8ff0;
/// `struct boot_params` (the kernel's "zero page").
pub const ZERO_PAGE: u64 = 0x7000;
/// Identity page tables for entry: one PML4, one PDPT, one PD of 2 MiB pages.
pub const PML4: u64 = 0x9000;
/// Page-directory-pointer table.
pub const PDPT: u64 = 0xa000;
/// Page directory: maps the first GiB.
pub const PD: u64 = 0xb000;
/// The kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Room for the command line, its zero byte included.
pub const CMDLINE_MAX: usize = 0x2000;
/// Low RAM ends here (where a PC has its EBDA), so that probes of legacy ROM find no RAM.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// The ACPI tables, in the area a PC keeps for firmware.
pub const ACPI: u64 = 0xe_0000;
/// Room for the ACPI tables.
pub const ACPI_MAX: usize = 0x1_e000;
/// The generation id of the VM (16 bytes), written anew at a restore.
pub const VMGENID: u64 = 0xf_f000;
/// RAM from here on belongs to the kernel.
pub const HIGH_RAM_START: u64 = 0x10_0000;

/// RAM below 4 GiB ends here at the latest.
pub const MMIO_START: u64 = 0xc000_0000;
/// PCI BARs lie here.
pub const PCI_WINDOW: u64 = MMIO_START;
/// Bytes of the window for PCI BARs.
pub const PCI_WINDOW_SIZE: u64 = 0x2000_0000;
/// The ECAM of bus 0: 256 functions of 4 KiB (PCIe base spec §7.2.2).
pub const ECAM: u64 = 0xe000_0000;
/// Bytes of the ECAM.
pub const ECAM_SIZE: u64 = 0x10_0000;
/// The I/O APIC, in the kernel's irqchip.
pub const IOAPIC: u32 = 0xfec0_0000;
/// The local APICs.
pub const LAPIC: u32 = 0xfee0_0000;
/// Three pages KVM needs on Intel for the real-mode task state.
pub const KVM_TSS: usize = 0xfffb_d000;
/// One page KVM needs on Intel for a real-mode identity map.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// RAM beyond the hole continues here.
pub const ABOVE_4G: u64 = 0x1_0000_0000;

/// Memory that is added later begins at a multiple of this, beyond all RAM.
pub const GROWTH_ALIGN: u64 = 1 << 30;

/// First port of the serial console.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Interrupt line of the serial console.
pub const SERIAL_GSI: u32 = 4;
/// ACPI sleep control register: power-off.
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// ACPI sleep status register.
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// ACPI reset register.
pub const RESET_PORT: u16 = 0x602;
/// pvpanic's port.
pub const PVPANIC_PORT: u16 = 0x505;
/// Interrupt line of the generic event device (a new generation id).
pub const GED_GSI: u32 = 5;
/// The I/O APIC serves lines below this; message-signalled interrupts are routed above.
pub const IOAPIC_LINES: u32 = 24;
