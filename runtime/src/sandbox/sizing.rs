//! How large a pod's VM is, and what its containers may use together. Pure.
//!
//! The kubelet sums up limits over those containers that have one, and writes the sum to the pod's cgroup
//! only if all have: that cgroup says whether a pod is limited. A limited pod's containers get their
//! limit whole; what the machine itself needs comes on top (KEP-688: from the RuntimeClass's overhead,
//! which the kubelet has added to the cgroup's limit, or, where that is missing or too small, from a
//! cgroup of Bulkhead's own). A pod without a limit starts small and grows (`growth`).

use bulkhead_contract::vmm::MAX_MEMORY_MIB;
use bulkhead_proto::cri::{LinuxContainerResources, LinuxPodSandboxConfig};

use super::SandboxError;
use crate::{
    cgroup::PodLimits,
    config::{Sandbox, Vmm},
    records::{Shape, SizeLimits},
};

const MIB: u64 = 1 << 20;
/// Page tables take 8 bytes for each 4 KiB page, once in the process and once in KVM: 1/256.
const TABLES: u64 = 256;
/// The guest's kernel has 64 bytes for each page of 4 KiB, its struct page: 1/64.
const PAGE_STRUCTS: u64 = 64;
/// The period of CPU limits where none is named, microseconds (cpu.max's default).
const DEFAULT_PERIOD: i64 = 100_000;

/// How many times its processors a pod can be grown to, and to how many in any case.
const VCPU_ROOM: u32 = 4;
const VCPU_ROOM_MIN: u32 = 4;
/// With how many processors a VM boots at most: the rest come online while the pod is already ready.
const BOOT_VCPUS: u32 = 4;
/// The unit in which memory is added (virtio-mem's block).
const BLOCK_MIB: u64 = 2;

/// All that says how large a pod may be.
#[derive(Debug, Clone, Copy)]
pub struct Given<'a> {
    /// The daemon's configuration.
    pub sandbox: &'a Sandbox,
    /// The daemon's configuration.
    pub vmm: &'a Vmm,
    /// CRI's: the sums and the overhead.
    pub linux: Option<&'a LinuxPodSandboxConfig>,
    /// What the pod's cgroup allows; does not exist where CRI names none.
    pub cgroup: &'a PodLimits,
}

/// The shape of a new pod's VM.
///
/// # Errors
/// If a number cannot be, or a cgroup above the pod leaves too little to boot.
pub fn shape(given: Given<'_>) -> Result<Shape, SandboxError> {
    let vcpus = given.vcpus()?;
    let memory = given.memory(0, None)?;
    let boot_mib = memory.guest_mib;
    let max_memory_mib = given
        .bounded(given.sandbox.max_memory_mib)
        .min(MAX_MEMORY_MIB)
        .max(boot_mib);
    // A processor the guest may get some day takes some of its memory from the start (its per-CPU
    // area), so there are some times as many as it has, not as many as the host has.
    let room = vcpus.saturating_mul(VCPU_ROOM).max(VCPU_ROOM_MIN);
    Ok(Shape {
        vcpus: vcpus.min(BOOT_VCPUS),
        memory_mib: boot_mib,
        scratch_mib: given.sandbox.scratch_mib,
        containers_memory: memory.containers,
        limits: Some(SizeLimits {
            boot_memory_mib: boot_mib,
            max_memory_mib,
            max_vcpus: room.min(given.sandbox.max_vcpus).max(vcpus),
            elastic: memory.containers.is_none() && max_memory_mib > boot_mib,
            beside: memory.beside,
        }),
    })
}

/// The shape of a pod whose limits have changed: that of a new pod with these limits, or as much
/// as its containers may use together where that is more; between what the VM was made for.
///
/// # Errors
/// As for a new pod.
pub fn resized(given: Given<'_>, sum: Sum, now: Shape) -> Result<Shape, SandboxError> {
    let Some(limits) = now.limits else {
        return Ok(now);
    };
    let place = Some(limits.beside);
    let mut memory = given.memory(sum.memory.unwrap_or(0), place)?;
    if sum.huge > 0 {
        // Of the memory that is the guest's, no memory limit counts them.
        let with_huge = memory.guest_mib.saturating_add(sum.huge.div_ceil(MIB));
        let bound = match (limits.beside, given.cgroup.memory) {
            (false, Some(bytes)) => given.guest_share(bytes / MIB),
            _ => u64::MAX,
        };
        let bounded = given.bounded(with_huge.min(bound));
        memory.guest_mib = memory.guest_mib.max(bounded);
    }
    let mut vcpus = given.vcpus()?;
    if let Some(sum) = sum.cpus {
        vcpus = vcpus.max(whole(sum));
    }
    Ok(Shape {
        vcpus: vcpus.clamp(1, limits.max_vcpus.max(1)),
        memory_mib: grown(memory.guest_mib, limits),
        containers_memory: memory.containers,
        ..now
    })
}

/// Whether a VM of this shape may have booted with fewer processors than its pod may use.
pub(super) fn may_have_more_vcpus(shape: &Shape) -> bool {
    let most = shape.limits.map_or(shape.vcpus, |limits| limits.max_vcpus);
    (BOOT_VCPUS..most).contains(&shape.vcpus)
}

/// A size the VM can have: memory is added in blocks of 2 MiB to what it booted with.
pub(super) fn grown(memory_mib: u64, limits: SizeLimits) -> u64 {
    let most = limits.max_memory_mib.max(limits.boot_memory_mib);
    let bounded = memory_mib.clamp(limits.boot_memory_mib, most);
    bounded - (bounded - limits.boot_memory_mib) % BLOCK_MIB
}

/// All the memory a VM with this much for its guest takes, MiB: the bound of a cgroup of its own.
pub fn total_mib(vmm: &Vmm, guest_mib: u64) -> u64 {
    guest_mib
        .saturating_add(guest_mib.div_ceil(TABLES))
        .saturating_add(vmm.overhead_mib)
}

/// What the containers of a pod may use together, where each of them has a limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sum {
    /// Bytes.
    pub memory: Option<u64>,
    /// Thousandths of a CPU.
    pub cpus: Option<u64>,
    /// Bytes of huge pages, which no memory limit counts.
    pub huge: u64,
}

impl Sum {
    /// Of these limits. One container without a limit leaves the sum without a meaning.
    ///
    /// # Errors
    /// If one cannot be.
    pub fn of<'a>(
        containers: impl Iterator<Item = &'a LinuxContainerResources>,
    ) -> Result<Self, SandboxError> {
        let (mut memory, mut cpu, mut any) = (Some(0u64), Some(0u64), false);
        let mut huge = 0u64;
        for resources in containers {
            any = true;
            let bytes = u64::try_from(resources.memory_limit_in_bytes).unwrap_or(0);
            let more = |sum: Option<u64>, part: Option<u64>| Some(sum?.saturating_add(part?));
            memory = more(memory, Some(bytes).filter(|bytes| *bytes > 0));
            cpu = more(cpu, cpus(resources)?);
            let pages = resources.hugepage_limits.iter();
            huge = pages.fold(huge, |sum, pages| sum.saturating_add(pages.limit));
        }
        Ok(Self {
            memory: memory.filter(|_| any),
            cpus: cpu.filter(|_| any),
            huge,
        })
    }
}

/// How much memory, and whose.
#[derive(Debug, Clone, Copy)]
struct Memory {
    guest_mib: u64,
    /// Bytes that the containers may use together.
    containers: Option<u64>,
    /// Whether the VM is charged to a cgroup beside the pod's.
    beside: bool,
}

impl Given<'_> {
    /// `sum` is what the containers may use together, bytes, 0 if they have no such limit; `place`
    /// where the VM already is.
    fn memory(&self, sum: u64, place: Option<bool>) -> Result<Memory, SandboxError> {
        let resources = self.linux.and_then(|l| l.resources.as_ref());
        let overhead = self.linux.and_then(|l| l.overhead.as_ref());
        let limit = amount(
            "resources.memory_limit_in_bytes",
            resources.map(|r| r.memory_limit_in_bytes),
        )?;
        let extra = amount(
            "overhead.memory_limit_in_bytes",
            overhead.map(|r| r.memory_limit_in_bytes),
        )?;
        let least = self.sandbox.min_memory_mib;
        let memory = match (self.cgroup.exists, self.cgroup.memory, limit) {
            (true, Some(bytes), _) => {
                // A cgroup smaller than the overhead in it is not the kubelet's.
                let containers = if bytes > extra { bytes - extra } else { bytes };
                let need = self.guest_for(containers);
                // The configured overhead has some slack, which an overhead of the class need not have.
                let least = need.saturating_sub(self.sandbox.guest_overhead_mib / 4);
                let fits = least <= self.guest_share(bytes / MIB);
                let beside = place.unwrap_or(!fits);
                Memory {
                    guest_mib: match beside {
                        true => need,
                        false => self.guest_share(bytes / MIB),
                    },
                    containers: Some(containers),
                    beside,
                }
            }
            // No kubelet made a cgroup for it: the sum is all there is.
            (false, _, limit) if limit > 0 => {
                let containers = limit.max(sum);
                let given = self.guest_share(limit.saturating_add(extra) / MIB);
                Memory {
                    guest_mib: given.max(self.guest_for(containers)),
                    containers: Some(containers),
                    beside: false,
                }
            }
            // No limit, or of some containers only.
            (_, _, limit) => Memory {
                guest_mib: self
                    .sandbox
                    .memory_mib
                    .max(self.guest_for(limit))
                    .max(self.guest_for(sum)),
                containers: None,
                beside: place.unwrap_or(false),
            },
        };
        let guest_mib = self
            .bounded(memory.guest_mib.max(least))
            .min(MAX_MEMORY_MIB);
        if guest_mib < least {
            return Err(self.too_little(guest_mib));
        }
        Ok(Memory {
            guest_mib,
            ..memory
        })
    }

    /// The guest whose containers may use so many bytes: its kernel and agent come on top, and the
    /// kernel's description of each page.
    fn guest_for(&self, containers: u64) -> u64 {
        if containers == 0 {
            return 0;
        }
        let need = containers
            .div_ceil(MIB)
            .saturating_add(self.sandbox.guest_overhead_mib);
        let mib = need.saturating_mul(PAGE_STRUCTS) / (PAGE_STRUCTS - 1);
        mib.next_multiple_of(BLOCK_MIB)
    }

    /// What a limit on VM and guest together leaves the guest: the VMM's own need is taken off, and
    /// the page tables that map the guest's memory (the process's and KVM's), which the kernel
    /// charges to the same cgroup.
    fn guest_share(&self, limit_mib: u64) -> u64 {
        let left = limit_mib.saturating_sub(self.vmm.overhead_mib);
        // guest + guest / TABLES <= left.
        left.saturating_mul(TABLES) / (TABLES + 1)
    }

    /// Not more than the cgroups above allow.
    fn bounded(&self, guest_mib: u64) -> u64 {
        match &self.cgroup.above {
            Some((bytes, _)) => guest_mib.min(self.guest_share(bytes / MIB)),
            None => guest_mib,
        }
    }

    fn too_little(&self, guest_mib: u64) -> SandboxError {
        let (bytes, whose) = self.cgroup.above.clone().unwrap_or_default();
        let least = self.sandbox.min_memory_mib;
        SandboxError::Invalid {
            what: format!(
                "the pod has too little memory to boot: the cgroup {} allows {} MiB, which leaves {guest_mib} MiB \
                 for the guest, and {least} MiB are needed ({} MiB with the VMM); raise that cgroup's limit",
                whose.display(),
                bytes / MIB,
                total_mib(self.vmm, least),
            ),
        }
    }

    /// As many as the pod may use: its cgroup's own quota, or all.
    fn vcpus(&self) -> Result<u32, SandboxError> {
        let resources = self.linux.and_then(|l| l.resources.as_ref());
        let by_cri = resources.map(cpus).transpose()?.flatten();
        let milli = match (self.cgroup.exists, self.cgroup.cpus) {
            // The overhead is in it.
            (true, quota) => quota,
            (false, _) => {
                let overhead = self.linux.and_then(|l| l.overhead.as_ref());
                let extra = overhead.map(self::cpus).transpose()?.flatten().unwrap_or(0);
                by_cri.map(|milli| milli.saturating_add(extra))
            }
        };
        let most = self.sandbox.max_vcpus;
        Ok(milli.map_or(self.sandbox.vcpus, |milli| whole(milli).clamp(1, most)))
    }
}

fn whole(milli: u64) -> u32 {
    u32::try_from(milli.div_ceil(1_000)).unwrap_or(u32::MAX)
}

/// A CPU limit in thousandths of a CPU; quota 0 or below is none (CRI, cpu_quota).
fn cpus(resources: &LinuxContainerResources) -> Result<Option<u64>, SandboxError> {
    if resources.cpu_quota <= 0 {
        return Ok(None);
    }
    let period = match resources.cpu_period {
        0 => DEFAULT_PERIOD,
        period => period,
    };
    let quota = amount("cpu_quota", Some(resources.cpu_quota))?;
    let period = amount("cpu_period", Some(period))?.max(1);
    Ok(Some(quota.saturating_mul(1_000).div_ceil(period)))
}

fn amount(what: &str, value: Option<i64>) -> Result<u64, SandboxError> {
    u64::try_from(value.unwrap_or(0)).map_err(|_| SandboxError::Invalid {
        what: format!("{what} is {}, below zero", value.unwrap_or(0)),
    })
}

#[cfg(test)]
mod tests;
