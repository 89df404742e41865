//! What the guest is told of its CPU: what KVM supports of the host's, with a topology of one
//! socket, one core per vCPU, one thread per core.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

const HYPERVISOR: u32 = 1 << 31;
const TSC_DEADLINE: u32 = 1 << 24;
const VMX: u32 = 1 << 5;
const HTT: u32 = 1 << 28;
/// AMD's leaf 0x8000_0001 ECX: secure virtual machine.
const SVM: u32 = 1 << 2;

/// What KVM supports, made fit for vCPU `id` of `count`.
#[must_use]
pub fn for_vcpu(supported: &CpuId, id: u8, count: u8, tsc_deadline: bool) -> CpuId {
    let mut cpuid = supported.clone();
    let apic_id = u32::from(id);
    let count = u32::from(count.max(1));
    for entry in cpuid.as_mut_slice() {
        adjust(entry, apic_id, count, tsc_deadline);
    }
    cpuid
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
        0xb | 0x1f => topology(entry, apic_id, count),
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

/// The extended topology leaves (Intel SDM vol. 2, CPUID leaf 0BH).
fn topology(entry: &mut kvm_cpuid_entry2, apic_id: u32, count: u32) {
    entry.edx = apic_id;
    (entry.eax, entry.ebx, entry.ecx) = match entry.index {
        0 => (0, 1, 1 << 8),
        1 => (core_bits(count), count, 2 << 8 | 1),
        index => (0, 0, index),
    };
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
        let supported = CpuId::from_entries(&[entry(1, 0), entry(0xb, 0), entry(0xb, 1)]).unwrap();
        let cpuid = for_vcpu(&supported, 5, 6, true);
        let [one, smt, core] = cpuid.as_slice() else {
            panic!()
        };
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
