//! How large a pod's VM is: from what the kubelet says the pod may use, from the defaults where it
//! says nothing, and never more than the pod's cgroup allows. Pure.

use bulkhead_proto::cri::{LinuxContainerResources, LinuxPodSandboxConfig};

use super::SandboxError;
use crate::{
    config::{Sandbox, Vmm},
    records::Shape,
};

const MIB: u64 = 1 << 20;
/// Page tables take 8 bytes for each 4 KiB page, once in the process and once in KVM: 1/256.
const TABLES: u64 = 256;
/// The period of CPU limits where none is named, microseconds (cpu.max's default).
const DEFAULT_PERIOD: i64 = 100_000;

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
    Ok(Shape {
        vcpus: vcpus(sandbox, resources, overhead)?,
        memory_mib: memory(sandbox, vmm, resources, overhead, cgroup)?,
        scratch_mib: sandbox.scratch_mib,
    })
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
    let whole = u32::try_from(milli.div_ceil(1_000)).unwrap_or(u32::MAX);
    Ok(whole.clamp(1, sandbox.max_vcpus))
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
        ];
        for (res, over, cgroup, vcpus, memory_mib) in table {
            let got = of(res.clone(), over.clone(), cgroup).unwrap();
            let case = format!("{res:?} {over:?} {cgroup:?}");
            assert_eq!((got.vcpus, got.memory_mib), (vcpus, memory_mib), "{case}");
        }
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
