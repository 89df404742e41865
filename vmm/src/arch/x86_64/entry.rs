//! The registers the first vCPU starts with: long mode, paging on, `rsi` at the zero page
//! (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").

use kvm_bindings::{Msrs, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;

use crate::arch::x86_64::boot::GDT_ENTRIES;
use crate::arch::x86_64::layout;
use crate::vcpu::VcpuError;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRINGS: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, write-back by default.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// Makes vCPU `id` enter the kernel at `entry`.
///
/// # Errors
/// When KVM refuses.
pub fn set_up(fd: &VcpuFd, id: u8, entry: u64) -> Result<(), VcpuError> {
    let kvm = |attempted| {
        move |source| VcpuError::Kvm {
            vcpu: id,
            attempted,
            source,
        }
    };

    let mut sregs = fd
        .get_sregs()
        .map_err(kvm("reading the segment registers"))?;
    let [_, _, code, data, task] = GDT_ENTRIES;
    sregs.cs = segment(code, 2);
    let data = segment(data, 3);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(task, 4);
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = u16::try_from(size_of_val(&GDT_ENTRIES) - 1).unwrap_or(u16::MAX);
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cr3 = layout::PML4;
    sregs.cr4 |= CR4_PAE;
    sregs.cr0 |= CR0_PE | CR0_ET | CR0_PG;
    sregs.efer |= EFER_LME | EFER_LMA;
    fd.set_sregs(&sregs)
        .map_err(kvm("setting the segment registers"))?;

    let regs = kvm_regs {
        rflags: 2,
        rip: entry,
        rsp: layout::BOOT_STACK,
        rbp: layout::BOOT_STACK,
        rsi: layout::ZERO_PAGE,
        ..Default::default()
    };
    fd.set_regs(&regs).map_err(kvm("setting the registers"))?;

    let fpu = kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..Default::default()
    };
    fd.set_fpu(&fpu)
        .map_err(kvm("setting the floating-point registers"))?;

    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let msrs = Msrs::from_entries(&[
        entry(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRINGS),
        entry(MSR_MTRR_DEF_TYPE, MTRR_WRITE_BACK),
    ])
    .map_err(|_| VcpuError::TooMany {
        vcpu: id,
        what: "MSRs",
    })?;
    fd.set_msrs(&msrs)
        .map_err(kvm("setting the model-specific registers"))?;
    Ok(())
}

/// A segment register as loading descriptor `entry` number `index` would make it.
fn segment(entry: u64, index: u16) -> kvm_segment {
    let bits = |from: u32, count: u32| entry >> from & ((1 << count) - 1);
    let bit = |from: u32| u8::from(bits(from, 1) == 1);
    let limit = bits(0, 16) | bits(48, 4) << 16;
    let limit = if bit(55) == 1 {
        limit << 12 | 0xfff
    } else {
        limit
    };
    kvm_segment {
        base: bits(16, 24) | bits(56, 8) << 24,
        limit: u32::try_from(limit).unwrap_or(u32::MAX),
        selector: index * 8,
        type_: u8::try_from(bits(40, 4)).unwrap_or(0),
        present: bit(47),
        dpl: u8::try_from(bits(45, 2)).unwrap_or(0),
        db: bit(54),
        s: bit(44),
        l: bit(53),
        g: bit(55),
        avl: bit(52),
        unusable: 0,
        padding: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_become_what_the_boot_protocol_asks() {
        let [_, _, code, data, task] = GDT_ENTRIES;
        let code = segment(code, 2);
        assert_eq!(
            (code.selector, code.l, code.db, code.type_, code.s),
            (0x10, 1, 0, 0xb, 1)
        );
        assert_eq!((code.base, code.limit), (0, 0xffff_ffff));
        let data = segment(data, 3);
        assert_eq!(
            (data.selector, data.l, data.db, data.type_),
            (0x18, 0, 1, 3)
        );
        let task = segment(task, 4);
        assert_eq!((task.type_, task.s, task.present), (0xb, 0, 1));
    }
}
