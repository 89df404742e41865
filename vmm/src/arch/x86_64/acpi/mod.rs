//! ACPI tables: how the guest learns of its CPUs, its PCI bus and how to power off.
//!
//! The hardware-reduced model (ACPI 6.5 §4.1): no SCI, no legacy timers, no fixed hardware but
//! the sleep and reset registers. The tables never change while a VM runs.

mod dsdt;

use vm_memory::{Bytes, GuestAddress};

use crate::arch::x86_64::layout;
use crate::memory::GuestMemory;

const OEM_ID: [u8; 6] = *b"BLKHD ";
const OEM_TABLE: [u8; 8] = *b"BULKHEAD";
const HEADER: usize = 36;
const RSDP_SIZE: u64 = 36;

/// Why the tables could not be written.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// They outgrew their area.
    #[error("the ACPI tables take {0} bytes, there is room for {max}", max = layout::ACPI_MAX)]
    TooLarge(usize),
    /// Guest memory has no room there.
    #[error("writing the ACPI tables: {0}")]
    Write(#[source] vm_memory::GuestMemoryError),
}

/// Writes all tables for `vcpus` CPUs and returns the address of the root pointer.
///
/// # Errors
/// When they do not fit.
pub fn write(mem: &GuestMemory, vcpus: u8) -> Result<u64, AcpiError> {
    let mut area = Area::default();
    let dsdt = area.add(&table(*b"DSDT", 2, &dsdt::body()));
    let fadt = area.add(&fadt(dsdt));
    let madt = area.add(&madt(vcpus));
    let mcfg = area.add(&mcfg());
    let mut pointers = Vec::new();
    for address in [fadt, madt, mcfg] {
        pointers.extend_from_slice(&address.to_le_bytes());
    }
    let xsdt = area.add(&table(*b"XSDT", 1, &pointers));
    let bytes = area.finish(xsdt);
    if bytes.len() > layout::ACPI_MAX {
        return Err(AcpiError::TooLarge(bytes.len()));
    }
    mem.write_slice(&bytes, GuestAddress(layout::ACPI))
        .map_err(AcpiError::Write)?;
    Ok(layout::ACPI)
}

/// The tables one after the other behind the root pointer.
#[derive(Default)]
struct Area(Vec<u8>);

impl Area {
    fn add(&mut self, table: &[u8]) -> u64 {
        while !self.0.len().is_multiple_of(16) {
            self.0.push(0);
        }
        // The root pointer's 36 bytes come first; 48 keeps the alignment.
        let address = layout::ACPI + 48 + self.0.len() as u64;
        self.0.extend_from_slice(table);
        address
    }

    fn finish(self, xsdt: u64) -> Vec<u8> {
        let mut out = rsdp(xsdt);
        out.resize(48, 0);
        out.extend_from_slice(&self.0);
        out
    }
}

/// The byte that makes all bytes sum to zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, b| sum.wrapping_sub(*b))
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(target) = bytes.get_mut(at..at + value.len()) {
        target.copy_from_slice(value);
    }
}

/// Root system description pointer (ACPI 6.5 §5.2.5.3).
fn rsdp(xsdt: u64) -> Vec<u8> {
    let mut out = Vec::from(*b"RSD PTR \0");
    out.extend_from_slice(&OEM_ID);
    out.push(2);
    out.extend_from_slice(&0u32.to_le_bytes());
    out.extend_from_slice(&u32::try_from(RSDP_SIZE).unwrap_or(0).to_le_bytes());
    out.extend_from_slice(&xsdt.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    let first = checksum(out.get(..20).unwrap_or_default());
    put(&mut out, 8, &[first]);
    let all = checksum(&out);
    put(&mut out, 32, &[all]);
    out
}

/// A table: header, body, checksum (ACPI 6.5 §5.2.6).
fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + body.len());
    out.extend_from_slice(&signature);
    out.extend_from_slice(
        &u32::try_from(HEADER + body.len())
            .unwrap_or(0)
            .to_le_bytes(),
    );
    out.extend_from_slice(&[revision, 0]);
    out.extend_from_slice(&OEM_ID);
    out.extend_from_slice(&OEM_TABLE);
    out.extend_from_slice(&1u32.to_le_bytes());
    out.extend_from_slice(b"BLKH");
    out.extend_from_slice(&1u32.to_le_bytes());
    out.extend_from_slice(body);
    let sum = checksum(&out);
    put(&mut out, 9, &[sum]);
    out
}

/// A generic address structure for one byte-wide I/O port (ACPI 6.5 §5.2.3.2).
fn port_address(port: u16) -> [u8; 12] {
    let mut gas = [1, 8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    put(&mut gas, 4, &u64::from(port).to_le_bytes());
    gas
}

/// Fixed ACPI description table, hardware-reduced (ACPI 6.5 §5.2.9).
fn fadt(dsdt: u64) -> Vec<u8> {
    const FLAG_WBINVD: u32 = 1 << 0;
    const FLAG_PWR_BUTTON: u32 = 1 << 4;
    const FLAG_SLP_BUTTON: u32 = 1 << 5;
    const FLAG_RESET_REG: u32 = 1 << 10;
    const FLAG_HW_REDUCED: u32 = 1 << 20;
    // No VGA, no MSI trouble, no CMOS clock, and no 8042 (whose bit stays clear).
    const ARCH_NO_VGA: u16 = 1 << 2;
    const ARCH_NO_RTC: u16 = 1 << 5;

    let flags = FLAG_WBINVD | FLAG_PWR_BUTTON | FLAG_SLP_BUTTON | FLAG_RESET_REG | FLAG_HW_REDUCED;
    // Offsets in the table, less the header.
    let mut body = [0u8; 276 - HEADER];
    put(
        &mut body,
        109 - HEADER,
        &(ARCH_NO_VGA | ARCH_NO_RTC).to_le_bytes(),
    );
    put(&mut body, 112 - HEADER, &flags.to_le_bytes());
    put(&mut body, 116 - HEADER, &port_address(layout::RESET_PORT));
    put(&mut body, 128 - HEADER, &[RESET_VALUE]);
    // Minor version 5.
    put(&mut body, 131 - HEADER, &[5]);
    put(&mut body, 140 - HEADER, &dsdt.to_le_bytes());
    put(
        &mut body,
        244 - HEADER,
        &port_address(layout::SLEEP_CONTROL_PORT),
    );
    put(
        &mut body,
        256 - HEADER,
        &port_address(layout::SLEEP_STATUS_PORT),
    );
    put(&mut body, 268 - HEADER, b"BULKHEAD");
    table(*b"FACP", 6, &body)
}

/// What the guest writes to the reset register.
pub const RESET_VALUE: u8 = 1;

/// Whether a byte written to the sleep control register asks for power-off: the sleep-enable bit
/// and S5's type (ACPI 6.5 §4.8.3.7).
#[must_use]
pub fn is_power_off(value: u8) -> bool {
    value & (1 << 5) != 0 && (value >> 2) & 7 == dsdt::SLEEP_TYPE_S5
}

/// Multiple APIC description table (ACPI 6.5 §5.2.12): all vCPUs are enabled; that only one
/// comes up at boot is the command line's doing.
fn madt(vcpus: u8) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend_from_slice(&layout::LAPIC.to_le_bytes());
    body.extend_from_slice(&0u32.to_le_bytes());
    for id in 0..vcpus {
        // Processor local APIC: type 0, 8 bytes, uid, id, enabled.
        body.extend_from_slice(&[0, 8, id, id, 1, 0, 0, 0]);
    }
    // I/O APIC: type 1, 12 bytes, id, reserved, address, first line.
    body.extend_from_slice(&[1, 12, 0, 0]);
    body.extend_from_slice(&layout::IOAPIC.to_le_bytes());
    body.extend_from_slice(&0u32.to_le_bytes());
    table(*b"APIC", 5, &body)
}

/// Where the ECAM is (PCI firmware spec 3.3 §4.1.2): segment 0, bus 0 only.
fn mcfg() -> Vec<u8> {
    let mut body = vec![0u8; 8];
    body.extend_from_slice(&layout::ECAM.to_le_bytes());
    body.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0]);
    table(*b"MCFG", 1, &body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0u8, |s, b| s.wrapping_add(*b))
    }

    #[test]
    fn every_table_is_reachable_and_sums_to_zero() {
        let mem = memory::anonymous(4 << 20).unwrap();
        let root = write(&mem, 8).unwrap();
        let mut rsdp = [0u8; 36];
        mem.read_slice(&mut rsdp, GuestAddress(root)).unwrap();
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
        let read_table = |at: u64| {
            let len: u32 = mem.read_obj(GuestAddress(at + 4)).unwrap();
            let mut bytes = vec![0u8; len as usize];
            mem.read_slice(&mut bytes, GuestAddress(at)).unwrap();
            assert_eq!(sum(&bytes), 0);
            bytes
        };
        let xsdt = read_table(u64::from_le_bytes(rsdp[24..32].try_into().unwrap()));
        let mut seen = Vec::new();
        for entry in xsdt[HEADER..].chunks(8) {
            let table = read_table(u64::from_le_bytes(entry.try_into().unwrap()));
            if &table[..4] == b"FACP" {
                assert_eq!(table.len(), 276);
                let dsdt = read_table(u64::from_le_bytes(table[140..148].try_into().unwrap()));
                assert_eq!(&dsdt[..4], b"DSDT");
            }
            if &table[..4] == b"APIC" {
                assert_eq!(table.len(), HEADER + 8 + 8 * 8 + 12);
            }
            seen.push(table[..4].to_vec());
        }
        assert_eq!(seen, [b"FACP", b"APIC", b"MCFG"]);
    }

    #[test]
    fn only_the_power_off_value_powers_off() {
        assert!(is_power_off(1 << 5 | 5 << 2));
        assert!(!is_power_off(5 << 2));
        assert!(!is_power_off(1 << 5 | 4 << 2));
        assert!(!is_power_off(0));
    }
}
