//! The differentiated system description table: the devices that cannot be probed for.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Method,
    Name, Notify, Package, Path, ResourceTemplate,
};

use crate::arch::x86_64::layout;

/// The sleep type of S5 (power off).
pub(super) const SLEEP_TYPE_S5: u8 = 5;

/// Everything below `\_SB_` and the S5 package.
pub(super) fn body() -> Vec<u8> {
    let mut out = Vec::new();
    pci(&mut out);
    serial(&mut out);
    pvpanic(&mut out);
    generation_id(&mut out);
    // PM1a type, PM1b type and two reserved (ACPI 6.5 §7.4.2): the hardware-reduced model
    // reads the first.
    Name::new(
        Path::new("_S5_"),
        &Package::new(vec![&SLEEP_TYPE_S5, &0u8, &0u8, &0u8]),
    )
    .to_aml_bytes(&mut out);
    out
}

/// All addresses of the layout are below 4 GiB where this is used.
fn low32(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// The root bridge with its one window, and the ECAM as a motherboard resource: Linux uses an
/// ECAM only when some device reserves it. No _PRT, as there are no interrupt pins.
fn pci(out: &mut Vec<u8>) {
    let window_end = layout::PCI_WINDOW + layout::PCI_WINDOW_SIZE - 1;
    let bus = AddressSpace::new_bus_number(0u16, 0u16);
    let window = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        low32(layout::PCI_WINDOW),
        low32(window_end),
        None,
    );
    let ecam = Memory32Fixed::new(true, low32(layout::ECAM), low32(layout::ECAM_SIZE));
    Device::new(
        Path::new("\\_SB_.PCI0"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0A08")),
            &Name::new(Path::new("_CID"), &EISAName::new("PNP0A03")),
            &Name::new(Path::new("_SEG"), &0u8),
            &Name::new(Path::new("_BBN"), &0u8),
            &Name::new(Path::new("_UID"), &0u8),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&bus, &window]),
            ),
        ],
    )
    .to_aml_bytes(out);
    Device::new(
        Path::new("\\_SB_.ECAM"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0C02")),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&ecam])),
        ],
    )
    .to_aml_bytes(out);
}

/// COM1.
fn serial(out: &mut Vec<u8>) {
    let port = IO::new(layout::SERIAL_PORT, layout::SERIAL_PORT, 1, 8);
    let irq = Interrupt::new(true, true, false, false, layout::SERIAL_GSI);
    Device::new(
        Path::new("\\_SB_.COM1"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &0u8),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&port, &irq])),
        ],
    )
    .to_aml_bytes(out);
}

/// The port by which a guest reports its panic; Linux finds it by the id QEMU gave it.
fn pvpanic(out: &mut Vec<u8>) {
    let port = IO::new(layout::PVPANIC_PORT, layout::PVPANIC_PORT, 1, 1);
    Device::new(
        Path::new("\\_SB_.PEVT"),
        vec![
            &Name::new(Path::new("_HID"), &"QEMU0001"),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&port])),
        ],
    )
    .to_aml_bytes(out);
}

/// The generation id, and the generic event device that says it changed.
fn generation_id(out: &mut Vec<u8>) {
    let low = low32(layout::VMGENID);
    Device::new(
        Path::new("\\_SB_.VGEN"),
        vec![
            &Name::new(Path::new("_HID"), &"BLKH0001"),
            &Name::new(Path::new("_CID"), &"VM_Gen_Counter"),
            &Name::new(Path::new("_DDN"), &"VM_Gen_Counter"),
            &Name::new(Path::new("ADDR"), &Package::new(vec![&low, &0u32])),
        ],
    )
    .to_aml_bytes(out);
    let irq = Interrupt::new(true, true, false, false, layout::GED_GSI);
    Device::new(
        Path::new("\\_SB_.GED_"),
        vec![
            &Name::new(Path::new("_HID"), &"ACPI0013"),
            &Name::new(Path::new("_UID"), &0u8),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&irq])),
            &Method::new(
                Path::new("_EVT"),
                1,
                true,
                vec![&Notify::new(&Path::new("\\_SB_.VGEN"), &0x80u8)],
            ),
        ],
    )
    .to_aml_bytes(out);
}
