//! Making vCPUs, for a boot and for a machine that grows.

use super::error::MachineError;
use crate::arch::x86_64::cpuid;
use crate::vcpu::VcpuError;
use crate::vm::Vm;

/// A vCPU of `possible` that the guest may have in the end, as after power-on.
pub(super) fn new_vcpu(vm: &Vm, id: u8, possible: u8) -> Result<kvm_ioctls::VcpuFd, MachineError> {
    let fd = vm.create_vcpu(id)?;
    let leaves = cpuid::for_vcpu(vm.supported_cpuid(), id, possible, vm.has_tsc_deadline());
    fd.set_cpuid2(&leaves).map_err(|source| VcpuError::Kvm {
        vcpu: id,
        attempted: "setting CPUID",
        source,
    })?;
    Ok(fd)
}

/// KVM looks destinations of interrupts up in a map, which it makes anew when a local APIC changes
/// its state, and not when a vCPU is made: of a machine that boots, vCPU 0 changes its own soon. A
/// vCPU that is made later would never hear that it is to start.
pub(super) fn be_found(fd: &kvm_ioctls::VcpuFd, id: u8) -> Result<(), VcpuError> {
    let failed = |attempted| {
        move |source| VcpuError::Kvm {
            vcpu: id,
            attempted,
            source,
        }
    };
    let apic = fd.get_lapic().map_err(failed("reading the local APIC"))?;
    fd.set_lapic(&apic)
        .map_err(failed("setting the local APIC"))
}
