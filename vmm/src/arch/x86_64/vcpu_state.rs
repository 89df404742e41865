//! The saved form of a vCPU.

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state,
    kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use crate::vcpu::VcpuError;

const MSR_TSC: u32 = 0x10;
const MSR_TSC_DEADLINE: u32 = 0x6e0;

/// One leaf of CPUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedLeaf(u32, u32, bool, [u32; 4]);

/// Everything of one vCPU.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedVcpu {
    id: u8,
    cpuid: Vec<SavedLeaf>,
    tsc_khz: u32,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    /// Index and value, in the order they are set.
    msrs: Vec<(u32, u64)>,
    events: kvm_vcpu_events,
}

/// Saves vCPU `id`, which must be paused. `msr_list` are the registers this host's KVM keeps.
///
/// # Errors
/// When KVM refuses.
pub fn save(fd: &VcpuFd, id: u8, msr_list: &[u32]) -> Result<SavedVcpu, VcpuError> {
    let kvm = |attempted| {
        move |source| VcpuError::Kvm {
            vcpu: id,
            attempted,
            source,
        }
    };
    // This one first: it settles pending INIT and SIPI before the rest is read.
    let mp_state = fd
        .get_mp_state()
        .map_err(kvm("reading the state of the processor"))?;
    let cpuid = fd
        .get_cpuid2(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(kvm("reading CPUID"))?
        .as_slice()
        .iter()
        .map(|e| {
            let indexed = e.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0;
            SavedLeaf(e.function, e.index, indexed, [e.eax, e.ebx, e.ecx, e.edx])
        })
        .collect();
    Ok(SavedVcpu {
        id,
        cpuid,
        // Not every host can tell; zero means do not set it.
        tsc_khz: fd.get_tsc_khz().unwrap_or(0),
        mp_state,
        regs: fd.get_regs().map_err(kvm("reading the registers"))?,
        sregs: fd
            .get_sregs()
            .map_err(kvm("reading the segment registers"))?,
        xsave: fd
            .get_xsave()
            .map_err(kvm("reading the vector registers"))?,
        xcrs: fd
            .get_xcrs()
            .map_err(kvm("reading the extended control registers"))?,
        debug_regs: fd
            .get_debug_regs()
            .map_err(kvm("reading the debug registers"))?,
        lapic: fd.get_lapic().map_err(kvm("reading the local APIC"))?,
        msrs: save_msrs(fd, id, msr_list)?,
        events: fd
            .get_vcpu_events()
            .map_err(kvm("reading pending events"))?,
    })
}

/// Reads what can be read of `list`. KVM's list names registers that some CPUs do not have;
/// reading stops at such a one, which is then left out.
fn save_msrs(fd: &VcpuFd, id: u8, list: &[u32]) -> Result<Vec<(u32, u64)>, VcpuError> {
    let mut saved = Vec::with_capacity(list.len());
    let mut rest = list;
    while !rest.is_empty() {
        let entries: Vec<_> = rest
            .iter()
            .map(|index| kvm_msr_entry {
                index: *index,
                ..Default::default()
            })
            .collect();
        let mut msrs = Msrs::from_entries(&entries).map_err(|_| VcpuError::TooMany {
            vcpu: id,
            what: "MSRs",
        })?;
        let count = fd.get_msrs(&mut msrs).map_err(|source| VcpuError::Kvm {
            vcpu: id,
            attempted: "reading the model-specific registers",
            source,
        })?;
        saved.extend(
            msrs.as_slice()
                .iter()
                .take(count)
                .map(|e| (e.index, e.data)),
        );
        rest = rest.get(count + 1..).unwrap_or_default();
    }
    // The deadline means something only against the restored counter.
    saved.sort_by_key(|(index, _)| match *index {
        MSR_TSC => 0u8,
        MSR_TSC_DEADLINE => 2,
        _ => 1,
    });
    Ok(saved)
}

impl SavedVcpu {
    /// Which vCPU this is.
    #[must_use]
    pub fn id(&self) -> u8 {
        self.id
    }

    /// Puts the state into a new vCPU.
    ///
    /// # Errors
    /// When KVM refuses, which a host with other CPUs may.
    pub fn restore(&self, fd: &VcpuFd) -> Result<(), VcpuError> {
        let id = self.id;
        let kvm = |attempted| {
            move |source| VcpuError::Kvm {
                vcpu: id,
                attempted,
                source,
            }
        };
        let entries: Vec<_> = self
            .cpuid
            .iter()
            .map(
                |SavedLeaf(function, index, indexed, [eax, ebx, ecx, edx])| kvm_cpuid_entry2 {
                    function: *function,
                    index: *index,
                    flags: if *indexed {
                        KVM_CPUID_FLAG_SIGNIFCANT_INDEX
                    } else {
                        0
                    },
                    eax: *eax,
                    ebx: *ebx,
                    ecx: *ecx,
                    edx: *edx,
                    ..Default::default()
                },
            )
            .collect();
        let cpuid = CpuId::from_entries(&entries).map_err(|_| VcpuError::TooMany {
            vcpu: id,
            what: "CPUID",
        })?;
        fd.set_cpuid2(&cpuid).map_err(kvm("setting CPUID"))?;
        if self.tsc_khz != 0 && fd.get_tsc_khz().is_ok_and(|khz| khz != self.tsc_khz) {
            fd.set_tsc_khz(self.tsc_khz)
                .map_err(kvm("setting the TSC's frequency"))?;
        }
        fd.set_mp_state(self.mp_state)
            .map_err(kvm("setting the state of the processor"))?;
        fd.set_regs(&self.regs)
            .map_err(kvm("setting the registers"))?;
        fd.set_sregs(&self.sregs)
            .map_err(kvm("setting the segment registers"))?;
        // SAFETY: the structure has the size KVM_GET_XSAVE gave, which is what KVM_SET_XSAVE
        // reads as long as no feature beyond it was enabled for this process; none is.
        unsafe { fd.set_xsave(&self.xsave) }.map_err(kvm("setting the vector registers"))?;
        fd.set_xcrs(&self.xcrs)
            .map_err(kvm("setting the extended control registers"))?;
        fd.set_debug_regs(&self.debug_regs)
            .map_err(kvm("setting the debug registers"))?;
        // Before the MSRs: the deadline timer is the local APIC's.
        fd.set_lapic(&self.lapic)
            .map_err(kvm("setting the local APIC"))?;
        self.restore_msrs(fd)?;
        fd.set_vcpu_events(&self.events)
            .map_err(kvm("setting pending events"))?;
        Ok(())
    }

    fn restore_msrs(&self, fd: &VcpuFd) -> Result<(), VcpuError> {
        let id = self.id;
        let entries: Vec<_> = self
            .msrs
            .iter()
            .map(|(index, data)| kvm_msr_entry {
                index: *index,
                data: *data,
                ..Default::default()
            })
            .collect();
        let mut rest = entries.as_slice();
        while !rest.is_empty() {
            let msrs = Msrs::from_entries(rest).map_err(|_| VcpuError::TooMany {
                vcpu: id,
                what: "MSRs",
            })?;
            let count = fd.set_msrs(&msrs).map_err(|source| VcpuError::Kvm {
                vcpu: id,
                attempted: "setting the model-specific registers",
                source,
            })?;
            // KVM reads some registers it never lets be written; zero is their start value.
            match rest.get(count) {
                Some(refused) if refused.data != 0 => {
                    return Err(VcpuError::Msr {
                        vcpu: id,
                        msr: refused.index,
                    });
                }
                _ => rest = rest.get(count + 1..).unwrap_or_default(),
            }
        }
        Ok(())
    }
}
