//! The CPUID a guest sees: what KVM supports of the host's, with a topology of one
//! socket, one core per vCPU, one thread per core.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

const HYPERVISOR: u32 = 1 << 31;
const TSC_DEADLINE: u32 = 1 << 24;
const VMX: u32 = 1 << 5;
const HTT: u32 = 1 << 28;
/// AMD's leaf 0x8000_0001 ECX: secure virtual machine.
const SVM: u32 = 1 << 2;
/// The same leaf: several logical processors are cores, not threads.
const CMP_LEGACY: u32 = 1 << 1;
const EXTENDED_TOPOLOGY: u32 = 0xb;
const EXTENDED_TOPOLOGY_V2: u32 = 0x1f;

/// What KVM supports, made fit for vCPU `id` of `count`.
#[must_use]
pub fn for_vcpu(supported: &CpuId, id: u8, count: u8, tsc_deadline: bool) -> CpuId {
    let apic_id = u32::from(id);
    let count = u32::from(count.max(1));
    let mut entries: Vec<_> = supported
        .as_slice()
        .iter()
        .filter(|e| !matches!(e.function, EXTENDED_TOPOLOGY | EXTENDED_TOPOLOGY_V2))
        .copied()
        .collect();
    let highest = entries
        .iter()
        .find(|e| e.function == 0)
        .map_or(0, |e| e.eax);
    // "Auth" of AuthenticAMD, or "Hygo" of HygonGenuine.
    let vendor = entries
        .iter()
        .find(|e| e.function == 0)
        .map_or(0, |e| e.ebx);
    let amd = [u32::from_le_bytes(*b"Auth"), u32::from_le_bytes(*b"Hygo")].contains(&vendor);
    for entry in &mut entries {
        adjust(entry, apic_id, count, tsc_deadline);
        if entry.function == 0x8000_0001 {
            set(&mut entry.ecx, CMP_LEGACY, amd && count > 1);
        }
    }
    // KVM leaves these leaves to us, and lists them without their levels.
    for function in [EXTENDED_TOPOLOGY, EXTENDED_TOPOLOGY_V2] {
        if function <= highest {
            entries.extend((0..3).map(|level| topology(function, level, apic_id, count)));
        }
    }
    CpuId::from_entries(&entries).unwrap_or_else(|_| supported.clone())
}

/// Bits of an APIC id that count cores.
fn core_bits(count: u32) -> u32 {
    u32::BITS - (count - 1).leading_zeros()
}

fn adjust(entry: &mut kvm_cpuid_entry2, apic_id: u32, count: u32, tsc_deadline: bool) {
    match entry.function {
        0x1 => {
            entry.ebx = entry.ebx & 0x0000_ffff | count.min(255) << 16 | apic_id << 24;
            // Nested guests are not offered: they would have to be saved too.
            entry.ecx = entry.ecx & !VMX | HYPERVISOR;
            // KVM emulates the deadline timer itself and leaves the bit to us.
            set(&mut entry.ecx, TSC_DEADLINE, tsc_deadline);
            set(&mut entry.edx, HTT, count > 1);
        }
        // Intel's caches: the first two levels are private, the last is shared by all.
        0x4 if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            let sharers = if level >= 3 { count - 1 } else { 0 };
            entry.eax = entry.eax & 0x0000_3fff | (count - 1).min(63) << 26 | sharers << 14;
        }
        // AMD's.
        0x8000_0001 => entry.ecx &= !SVM,
        0x8000_0008 => {
            entry.ecx = entry.ecx & !0xf0ff | core_bits(count) << 12 | (count - 1).min(255);
        }
        0x8000_000a => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        0x8000_001d if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            let sharers = if level >= 3 { count - 1 } else { 0 };
            entry.eax = entry.eax & !0x03ff_c000 | sharers << 14;
        }
        0x8000_001e => {
            entry.eax = apic_id;
            entry.ebx = entry.ebx & !0xffff | apic_id & 0xff;
            entry.ecx = 0;
        }
        _ => {}
    }
}

/// One level of the extended topology leaves (Intel SDM vol. 2, CPUID leaf 0BH): threads, then
/// cores, then the end.
fn topology(function: u32, level: u32, apic_id: u32, count: u32) -> kvm_cpuid_entry2 {
    let (eax, ebx, kind) = match level {
        0 => (0, 1, 1),
        1 => (core_bits(count), count, 2),
        _ => (0, 0, 0),
    };
    kvm_cpuid_entry2 {
        function,
        index: level,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax,
        ebx,
        ecx: kind << 8 | level,
        edx: apic_id,
        ..Default::default()
    }
}

fn set(word: &mut u32, bit: u32, on: bool) {
    if on {
        *word |= bit;
    } else {
        *word &= !bit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            ..Default::default()
        }
    }

    #[test]
    fn topology_is_one_socket_of_single_threaded_cores() {
        let mut zero = entry(0, 0);
        zero.eax = 0xd;
        zero.ebx = u32::from_le_bytes(*b"Auth");
        let all = [zero, entry(1, 0), entry(0xb, 0), entry(0x8000_0001, 0)];
        let supported = CpuId::from_entries(&all).unwrap();
        let cpuid = for_vcpu(&supported, 5, 6, true);
        let [_, one, amd, smt, core, end] = cpuid.as_slice() else {
            panic!()
        };
        assert_eq!(amd.ecx, CMP_LEGACY);
        assert_eq!((end.index, end.ecx), (2, 2));
        assert_eq!(one.ebx >> 24, 5);
        assert_eq!(one.ebx >> 16 & 0xff, 6);
        assert_eq!(
            one.ecx & (HYPERVISOR | TSC_DEADLINE),
            HYPERVISOR | TSC_DEADLINE
        );
        assert_ne!(one.edx & HTT, 0);
        assert_eq!((smt.eax, smt.ebx, smt.edx), (0, 1, 5));
        assert_eq!((core.eax, core.ebx, core.edx), (3, 6, 5));
    }

    #[test]
    fn nested_virtualization_is_hidden() {
        let mut amd = entry(0x8000_0001, 0);
        amd.ecx = u32::MAX;
        let mut intel = entry(1, 0);
        intel.ecx = u32::MAX;
        let supported = CpuId::from_entries(&[amd, intel]).unwrap();
        let cpuid = for_vcpu(&supported, 0, 1, false);
        let [amd, intel] = cpuid.as_slice() else {
            panic!()
        };
        assert_eq!(amd.ecx & SVM, 0);
        assert_eq!(intel.ecx & (VMX | TSC_DEADLINE), 0);
        assert_eq!(intel.edx & HTT, 0);
    }

    #[test]
    fn core_bits_hold_every_id() {
        for count in 1..=255u32 {
            assert!(1u64 << core_bits(count) >= u64::from(count));
            assert!(count == 1 || 1u64 << (core_bits(count) - 1) < u64::from(count));
        }
    }
}
