//! How large a pod's VM is: from what the kubelet says the pod may use, from the defaults where it
//! says nothing, and never more than the pod's cgroup allows. Pure.

use bulkhead_contract::vmm::MAX_MEMORY_MIB;
use bulkhead_proto::cri::{LinuxContainerResources, LinuxPodSandboxConfig};

use super::SandboxError;
use crate::{
    config::{Sandbox, Vmm},
    records::{Shape, SizeLimits},
};

const MIB: u64 = 1 << 20;
/// Page tables take 8 bytes for each 4 KiB page, once in the process and once in KVM: 1/256.
const TABLES: u64 = 256;
/// The period of CPU limits where none is named, microseconds (cpu.max's default).
const DEFAULT_PERIOD: i64 = 100_000;

/// How many times its processors a pod can be grown to, and to how many in any case.
const VCPU_ROOM: u32 = 4;
const VCPU_ROOM_MIN: u32 = 4;
/// The unit in which memory is added (virtio-mem's block).
const BLOCK_MIB: u64 = 2;

/// A limit on the pod's cgroup, and on which level it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupLimit {
    /// memory.max.
    pub bytes: u64,
    /// The cgroup that has it.
    pub whose: String,
}

/// The shape of a pod's VM.
///
/// Memory: the pod's limit (the containers' sum and the RuntimeClass's overhead), or the default;
/// whatever the cgroup allows is a bound in either case; from a limit the VMM's own need is taken
/// off before the rest is the guest's. CPUs: as many as the CPU limit can keep busy.
pub fn shape(
    sandbox: &Sandbox,
    vmm: &Vmm,
    linux: Option<&LinuxPodSandboxConfig>,
    cgroup: Option<&CgroupLimit>,
) -> Result<Shape, SandboxError> {
    let resources = linux.and_then(|l| l.resources.as_ref());
    let overhead = linux.and_then(|l| l.overhead.as_ref());
    let vcpus = vcpus(sandbox, resources, overhead)?;
    let memory_mib = memory(sandbox, vmm, resources, overhead, cgroup)?.min(MAX_MEMORY_MIB);
    // A processor the guest may get some day takes some of its memory from the start (its per-CPU
    // area), so there are some times as many as it has, not as many as the host has.
    let room = vcpus.saturating_mul(VCPU_ROOM).max(VCPU_ROOM_MIN);
    Ok(Shape {
        vcpus,
        memory_mib,
        scratch_mib: sandbox.scratch_mib,
        limits: Some(SizeLimits {
            boot_memory_mib: memory_mib,
            max_memory_mib: sandbox.max_memory_mib.max(memory_mib),
            max_vcpus: room.min(sandbox.max_vcpus).max(vcpus),
        }),
    })
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

/// The shape of a pod whose limits have changed: that of a new pod with these limits, or as much
/// as its containers may use together where that is more; between what the VM was made for.
pub fn resized(
    sandbox: &Sandbox,
    vmm: &Vmm,
    linux: Option<&LinuxPodSandboxConfig>,
    sum: Sum,
    cgroup: Option<&CgroupLimit>,
    now: Shape,
) -> Result<Shape, SandboxError> {
    let Some(limits) = now.limits else {
        return Ok(now);
    };
    let by_pod = shape(sandbox, vmm, linux, cgroup)?;
    let overhead = linux.and_then(|l| l.overhead.as_ref());
    let mut memory_mib = by_pod.memory_mib;
    if let Some(sum) = sum.memory {
        let extra = overhead.map_or(0, |r| r.memory_limit_in_bytes);
        let bytes = sum.saturating_add(u64::try_from(extra).unwrap_or(0));
        let bound = cgroup.map_or(bytes, |c| c.bytes.min(bytes));
        memory_mib = memory_mib.max(guest_share(bound / MIB, vmm.overhead_mib));
    }
    if sum.huge > 0 {
        let bound = cgroup.map_or(u64::MAX, |c| guest_share(c.bytes / MIB, vmm.overhead_mib));
        let with_huge = memory_mib.saturating_add(sum.huge.div_ceil(MIB));
        memory_mib = memory_mib.max(with_huge.min(bound));
    }
    let mut vcpus = by_pod.vcpus;
    if let Some(sum) = sum.cpus {
        vcpus = vcpus.max(whole(sum));
    }
    Ok(Shape {
        vcpus: vcpus.clamp(1, limits.max_vcpus.max(1)),
        memory_mib: grown(memory_mib, limits),
        ..now
    })
}

/// A size the VM can have: memory is added in blocks of 2 MiB to what it booted with.
fn grown(memory_mib: u64, limits: SizeLimits) -> u64 {
    let most = limits.max_memory_mib.max(limits.boot_memory_mib);
    let bounded = memory_mib.clamp(limits.boot_memory_mib, most);
    bounded - (bounded - limits.boot_memory_mib) % BLOCK_MIB
}

fn whole(milli: u64) -> u32 {
    u32::try_from(milli.div_ceil(1_000)).unwrap_or(u32::MAX)
}

fn memory(
    sandbox: &Sandbox,
    vmm: &Vmm,
    resources: Option<&LinuxContainerResources>,
    overhead: Option<&LinuxContainerResources>,
    cgroup: Option<&CgroupLimit>,
) -> Result<u64, SandboxError> {
    let limit = amount(
        "resources.memory_limit_in_bytes",
        resources.map(|r| r.memory_limit_in_bytes),
    )?;
    let extra = amount(
        "overhead.memory_limit_in_bytes",
        overhead.map(|r| r.memory_limit_in_bytes),
    )?;
    // Without the containers' limit the overhead alone limits nothing: BestEffort and Burstable
    // pods have no sum.
    let given = (limit > 0).then(|| limit.saturating_add(extra));
    let own = vmm.overhead_mib;
    let guest = |bytes: u64| guest_share(bytes / MIB, own);

    let by_request = given.map_or(sandbox.memory_mib, guest);
    let memory_mib = cgroup.map_or(by_request, |c| by_request.min(guest(c.bytes)));
    if memory_mib >= sandbox.min_memory_mib {
        return Ok(memory_mib);
    }
    let tables = sandbox.min_memory_mib.div_ceil(TABLES);
    let need = sandbox
        .min_memory_mib
        .saturating_add(own)
        .saturating_add(tables);
    let bound = match (given, cgroup) {
        (given, Some(c)) if given.is_none_or(|g| c.bytes < g) => {
            format!("the cgroup {} allows {} MiB", c.whose, c.bytes / MIB)
        }
        (Some(given), _) => format!(
            "its memory limit with the overhead is {} MiB (resources {} MiB, overhead {} MiB)",
            given / MIB,
            limit / MIB,
            extra / MIB
        ),
        (None, _) => format!("its default memory is {} MiB", sandbox.memory_mib),
    };
    Err(SandboxError::Invalid {
        what: format!(
            "the pod has too little memory to boot: {bound}, and {need} MiB are needed ({} MiB for \
             the guest, {} MiB for its VMM); raise the limit or the RuntimeClass's \
             overhead.podFixed.memory",
            sandbox.min_memory_mib,
            need.saturating_sub(sandbox.min_memory_mib)
        ),
    })
}

/// What a limit leaves the guest: the VMM's own need is taken off, and the page tables that map
/// the guest's memory (the process's and KVM's), which the kernel charges to the same cgroup.
fn guest_share(limit_mib: u64, own_mib: u64) -> u64 {
    let left = limit_mib.saturating_sub(own_mib);
    // guest + guest / TABLES <= left.
    left.saturating_mul(TABLES) / (TABLES + 1)
}

fn vcpus(
    sandbox: &Sandbox,
    resources: Option<&LinuxContainerResources>,
    overhead: Option<&LinuxContainerResources>,
) -> Result<u32, SandboxError> {
    let Some(cpus) = resources.map(cpus).transpose()?.flatten() else {
        return Ok(sandbox.vcpus);
    };
    let extra = overhead.map(self::cpus).transpose()?.flatten().unwrap_or(0);
    let milli = cpus.saturating_add(extra);
    Ok(whole(milli).clamp(1, sandbox.max_vcpus))
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
mod tests {
    use super::*;
    use crate::config::Config;

    fn resources(quota: i64, mib: i64) -> Option<LinuxContainerResources> {
        Some(LinuxContainerResources {
            cpu_quota: quota,
            cpu_period: 100_000,
            memory_limit_in_bytes: mib << 20,
            ..Default::default()
        })
    }

    fn of(
        res: Option<LinuxContainerResources>,
        over: Option<LinuxContainerResources>,
        cgroup_mib: Option<u64>,
    ) -> Result<Shape, SandboxError> {
        let file = "[vmm]\noverhead_mib = 20\n[sandbox]\nmemory_mib = 512\nmin_memory_mib = 100\n";
        let mut config = Config::parse(std::path::Path::new("t"), file).unwrap();
        (config.sandbox.vcpus, config.sandbox.max_vcpus) = (2, 8);
        let linux = LinuxPodSandboxConfig {
            resources: res,
            overhead: over,
            ..Default::default()
        };
        let cgroup = cgroup_mib.map(|mib| CgroupLimit {
            bytes: mib << 20,
            whose: "/pod".into(),
        });
        shape(&config.sandbox, &config.vmm, Some(&linux), cgroup.as_ref())
    }

    #[test]
    fn guest_and_vmm_together_fit_what_is_given() {
        let table = [
            // resources, overhead, cgroup -> vcpus, memory
            (None, None, None, 2, 512),
            (resources(0, 0), resources(0, 0), None, 2, 512),
            (resources(20_000, 128), resources(5_000, 64), None, 1, 171),
            (
                resources(20_000, 128),
                resources(5_000, 64),
                Some(192),
                1,
                171,
            ),
            (
                resources(20_000, 128),
                resources(5_000, 64),
                Some(150),
                1,
                129,
            ),
            (resources(150_000, 4096), None, None, 2, 4060),
            (resources(300_000, 4096), resources(1, 0), None, 4, 4060),
            (resources(10_000_000, 4096), None, None, 8, 4060),
            (None, None, Some(300), 2, 278),
            (None, resources(0, 64), Some(4096), 2, 512),
            // No VM can have as much as this limit.
            (resources(0, 4 << 20), None, None, 2, MAX_MEMORY_MIB),
        ];
        for (res, over, cgroup, vcpus, memory_mib) in table {
            let got = of(res.clone(), over.clone(), cgroup).unwrap();
            let case = format!("{res:?} {over:?} {cgroup:?}");
            assert_eq!((got.vcpus, got.memory_mib), (vcpus, memory_mib), "{case}");
        }
    }

    #[test]
    fn a_changed_limit_changes_the_size_within_what_the_vm_was_made_for() {
        let file = "[vmm]\noverhead_mib = 20\n[sandbox]\nmemory_mib = 512\n\
                    min_memory_mib = 100\nmax_memory_mib = 2048\n";
        let mut config = Config::parse(std::path::Path::new("t"), file).unwrap();
        (config.sandbox.vcpus, config.sandbox.max_vcpus) = (2, 8);
        let linux = |res| LinuxPodSandboxConfig {
            resources: res,
            ..Default::default()
        };
        let first = linux(resources(100_000, 276));
        let boot = shape(&config.sandbox, &config.vmm, Some(&first), None).unwrap();
        let limits = boot.limits.unwrap();
        assert_eq!((boot.vcpus, boot.memory_mib), (1, 255));
        assert_eq!((limits.max_vcpus, limits.max_memory_mib), (4, 2048));
        let sum = |cpus, mib: Option<u64>| Sum {
            memory: mib.map(|mib| mib << 20),
            cpus,
            huge: 0,
        };
        let huge = |mib: u64| Sum {
            huge: mib << 20,
            ..sum(None, None)
        };
        let table = [
            // resources, containers' sum, cgroup -> vcpus, memory
            (resources(100_000, 276), sum(None, None), None, 1, 255),
            (resources(200_000, 532), sum(None, None), None, 2, 509),
            // The kubelet changes the pod first and the containers then, or the other way round.
            (
                resources(200_000, 532),
                sum(Some(500), Some(100)),
                None,
                2,
                509,
            ),
            (
                resources(100_000, 276),
                sum(Some(2_500), Some(532)),
                None,
                3,
                509,
            ),
            (
                resources(100_000, 276),
                sum(None, Some(532)),
                Some(300),
                1,
                277,
            ),
            // Not below what it booted with, not beyond what it was made for.
            (resources(10_000, 150), sum(None, None), None, 1, 255),
            (resources(9_900_000, 9_999), sum(None, None), None, 4, 2047),
            (None, sum(None, None), None, 2, 511),
            // Huge pages come on top, as far as the cgroup lets them.
            (resources(100_000, 276), huge(8), None, 1, 263),
            (resources(100_000, 276), huge(512), Some(300), 1, 277),
        ];
        for (res, sum, cgroup_mib, vcpus, memory_mib) in table {
            let case = format!("{res:?} {sum:?} {cgroup_mib:?}");
            let cgroup = cgroup_mib.map(|mib: u64| CgroupLimit {
                bytes: mib << 20,
                whose: "/pod".into(),
            });
            let linux = linux(res);
            let (sandbox, vmm) = (&config.sandbox, &config.vmm);
            let got = resized(sandbox, vmm, Some(&linux), sum, cgroup.as_ref(), boot).unwrap();
            assert_eq!((got.vcpus, got.memory_mib), (vcpus, memory_mib), "{case}");
        }
        let fixed = Shape {
            limits: None,
            ..boot
        };
        let linux = linux(resources(200_000, 532));
        let (sandbox, vmm) = (&config.sandbox, &config.vmm);
        let got = resized(sandbox, vmm, Some(&linux), Sum::default(), None, fixed).unwrap();
        assert_eq!(got, fixed);
    }

    #[test]
    fn a_sum_needs_a_limit_of_every_container() {
        let (one, two) = (resources(50_000, 64).unwrap(), resources(0, 32).unwrap());
        let of = |list: &[LinuxContainerResources]| Sum::of(list.iter()).unwrap();
        assert_eq!(of(&[]), Sum::default());
        let sum = of(&[one.clone(), one.clone()]);
        assert_eq!((sum.memory, sum.cpus), (Some(128 << 20), Some(1_000)));
        let sum = of(&[one, two]);
        assert_eq!((sum.memory, sum.cpus), (Some(96 << 20), None));
    }

    #[test]
    fn too_little_is_refused_with_the_figures() {
        let error = of(resources(0, 64), resources(0, 32), None)
            .unwrap_err()
            .to_string();
        for part in [
            "96 MiB",
            "resources 64 MiB",
            "overhead 32 MiB",
            "121 MiB are needed",
        ] {
            assert!(error.contains(part), "{error}");
        }
        let error = of(None, None, Some(64)).unwrap_err().to_string();
        assert!(error.contains("the cgroup /pod allows 64 MiB"), "{error}");
        assert!(of(resources(0, -1), None, None).is_err());
    }
}
