//! Limits: from CRI's numbers to the container's cgroup, in the guest or on the node.
//!
//! Not carried into a guest from here: cpusets, for they number the host's processors (`sandbox::cpus` has
//! the VM run there, and the container on vCPUs that do), and the swap limit (the guest has no swap).

use std::collections::HashMap;

use bulkhead_proto::cri::{HugepageLimit, LinuxContainerResources};
use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxHugepageLimit,
    LinuxHugepageLimitBuilder, LinuxMemoryBuilder, LinuxResources, LinuxResourcesBuilder,
};

use super::OciError;
use crate::number_set::NumberSet;

/// The kernel's bounds for a CPU period, in microseconds (cgroup v2, cpu.max).
const PERIOD: std::ops::RangeInclusive<i64> = 1_000..=1_000_000;
/// The smallest quota the kernel takes, in microseconds.
const QUOTA_MIN: i64 = 1_000;
const DEFAULT_PERIOD: u64 = 100_000;
const SHARES_MAX: i64 = 262_144;
/// Below this the first process of a container cannot be set up.
const MEMORY_MIN: i64 = 4 * 1024 * 1024;

/// The checked limits as the OCI spec has them. `unset` values (0) stay absent, so that an update
/// with them changes nothing.
pub fn build(asked: &LinuxContainerResources, on_node: bool) -> Result<LinuxResources, OciError> {
    let mut cpu = LinuxCpuBuilder::default();
    let mut any_cpu = false;
    if let Some(shares) = shares(asked.cpu_shares)? {
        cpu = cpu.shares(shares);
        any_cpu = true;
    }
    if asked.cpu_period != 0 || asked.cpu_quota != 0 {
        let (quota, period) = bandwidth(asked.cpu_quota, asked.cpu_period)?;
        if let Some(quota) = quota {
            cpu = cpu.quota(quota);
        }
        cpu = cpu.period(period);
        any_cpu = true;
    }
    if on_node {
        if let Some(list) = number_list("cpuset_cpus", &asked.cpuset_cpus)? {
            cpu = cpu.cpus(list);
            any_cpu = true;
        }
        if let Some(list) = number_list("cpuset_mems", &asked.cpuset_mems)? {
            cpu = cpu.mems(list);
            any_cpu = true;
        }
    }
    let mut resources = LinuxResourcesBuilder::default();
    if any_cpu {
        resources = resources.cpu(cpu.build()?);
    }
    check_swap(asked)?;
    let limit = memory(asked.memory_limit_in_bytes)?;
    let swap = if on_node { swap(asked)? } else { None };
    if limit.is_some() || swap.is_some() {
        let mut memory = LinuxMemoryBuilder::default();
        if let Some(limit) = limit {
            memory = memory.limit(limit);
        }
        if let Some(swap) = swap {
            memory = memory.swap(swap);
        }
        resources = resources.memory(memory.build()?);
    }
    if !asked.hugepage_limits.is_empty() {
        let limits: Result<Vec<_>, _> = asked.hugepage_limits.iter().map(huge_pages).collect();
        resources = resources.hugepage_limits(limits?);
    }
    if !asked.unified.is_empty() {
        resources = resources.unified(unified(&asked.unified)?);
    }
    Ok(resources.build()?)
}

/// The device rules: nothing but the standard devices (which the agent's runtime adds itself), or
/// for a privileged container everything the guest has.
pub fn device_rules(privileged: bool) -> Result<Vec<LinuxDeviceCgroup>, OciError> {
    Ok(vec![
        LinuxDeviceCgroupBuilder::default()
            .allow(privileged)
            .access("rwm")
            .build()?,
    ])
}

fn shares(asked: i64) -> Result<Option<u64>, OciError> {
    match asked {
        0 => Ok(None),
        // The kernel's smallest weight stands for 2; the kubelet sends 2 for "no request".
        1..=SHARES_MAX => Ok(u64::try_from(asked.max(2)).ok()),
        _ => Err(OciError::Invalid {
            field: "cpu_shares",
            value: asked.to_string(),
            allowed: "0 (unset) to 262144",
        }),
    }
}

fn bandwidth(quota: i64, period: i64) -> Result<(Option<i64>, u64), OciError> {
    let period = match period {
        0 => DEFAULT_PERIOD,
        given if PERIOD.contains(&given) => u64::try_from(given).unwrap_or(DEFAULT_PERIOD),
        given => {
            return Err(OciError::Invalid {
                field: "cpu_period",
                value: given.to_string(),
                allowed: "0 (unset, 100 ms) or 1000 to 1000000 microseconds",
            });
        }
    };
    match quota {
        0 => Ok((None, period)),
        -1 | QUOTA_MIN.. => Ok((Some(quota), period)),
        given => Err(OciError::Invalid {
            field: "cpu_quota",
            value: given.to_string(),
            allowed: "0 (unset), -1 (no limit) or at least 1000 microseconds",
        }),
    }
}

fn memory(asked: i64) -> Result<Option<i64>, OciError> {
    match asked {
        0 => Ok(None),
        -1 | MEMORY_MIN.. => Ok(Some(asked)),
        given => Err(OciError::Invalid {
            field: "memory_limit_in_bytes",
            value: given.to_string(),
            allowed: "0 (unset), -1 (no limit) or at least 4194304 (4 MiB)",
        }),
    }
}

fn check_swap(asked: &LinuxContainerResources) -> Result<(), OciError> {
    let swap = asked.memory_swap_limit_in_bytes;
    let memory = asked.memory_limit_in_bytes;
    if swap < -1 || (swap > 0 && memory > 0 && swap < memory) {
        return Err(OciError::Invalid {
            field: "memory_swap_limit_in_bytes",
            value: swap.to_string(),
            allowed: "0 (unset), -1 (no limit), or memory and swap together: not below the memory limit",
        });
    }
    Ok(())
}

/// Memory and swap together. The kernel wants swap alone, so that there must be a limit of memory to
/// take off.
fn swap(asked: &LinuxContainerResources) -> Result<Option<i64>, OciError> {
    match asked.memory_swap_limit_in_bytes {
        0 => Ok(None),
        swap if swap > 0 && asked.memory_limit_in_bytes <= 0 => Err(OciError::Invalid {
            field: "memory_swap_limit_in_bytes",
            value: swap.to_string(),
            allowed: "0 (unset) or -1 (no limit), where the container has no memory limit",
        }),
        swap => Ok(Some(swap)),
    }
}

/// Processors or memory nodes, as `0-3,8`; nothing said stays absent.
fn number_list(field: &'static str, text: &str) -> Result<Option<String>, OciError> {
    match NumberSet::parse(text) {
        Ok(set) if set.is_empty() => Ok(None),
        Ok(_) => Ok(Some(text.to_owned())),
        Err(_) => Err(OciError::Invalid {
            field,
            value: format!("{text:.80}"),
            allowed: "numbers and ranges of them, such as 0-3,8",
        }),
    }
}

/// A limit on huge pages of one size. Those of zero count, too: another container of the pod may
/// have some.
fn huge_pages(asked: &HugepageLimit) -> Result<LinuxHugepageLimit, OciError> {
    let size = page_size(&asked.page_size).ok_or_else(|| OciError::Invalid {
        field: "hugepage_limits.page_size",
        value: asked.page_size.clone(),
        allowed: "a size as the kernel names it: 64KB, 2MB, 1GB",
    })?;
    let limit = i64::try_from(asked.limit).ok();
    let limit = limit.filter(|_| asked.limit.is_multiple_of(size));
    let limit = limit.ok_or_else(|| OciError::Invalid {
        field: "hugepage_limits.limit",
        value: asked.limit.to_string(),
        allowed: "whole pages, in bytes",
    })?;
    let limits = LinuxHugepageLimitBuilder::default()
        .page_size(asked.page_size.clone())
        .limit(limit);
    Ok(limits.build()?)
}

/// Bytes of a page size such as `2MB`, which stands in the name of a file.
fn page_size(name: &str) -> Option<u64> {
    let (digits, unit) = name.split_at_checked(name.len().checked_sub(2)?)?;
    let unit = match unit {
        "KB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => return None,
    };
    let number = digits
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| digits.parse::<u64>().ok())??;
    number
        .checked_mul(unit)
        .filter(|size| size.is_power_of_two())
}

/// Raw cgroup v2 settings. The key is a file name in the container's cgroup: a controller's, and
/// nothing that could be a path.
fn unified(asked: &HashMap<String, String>) -> Result<HashMap<String, String>, OciError> {
    for (key, value) in asked {
        let chars = |c: char| {
            c.is_ascii_lowercase()
                || c.is_ascii_digit()
                || "._".contains(c)
                || c.is_ascii_uppercase()
        };
        let controller = key.split('.').next().unwrap_or_default();
        let known =
            ["cpu", "memory", "io", "pids", "hugetlb", "misc", "rdma"].contains(&controller);
        if !known || !key.contains('.') || key.contains("..") || !key.chars().all(chars) {
            return Err(OciError::Invalid {
                field: "unified",
                value: key.clone(),
                allowed: "names of cgroup v2 files of cpu, memory, io, pids, hugetlb, misc or rdma, such as memory.high",
            });
        }
        if value.len() > 4096 || value.contains('\0') {
            return Err(OciError::Invalid {
                field: "unified",
                value: format!("{key}={value:.40}"),
                allowed: "values of at most 4096 bytes without NUL",
            });
        }
    }
    Ok(asked.clone())
}

/// What an update writes: what it names, with the memory limit that a new swap limit counts from.
pub fn changed(
    asked: &LinuxContainerResources,
    merged: &LinuxContainerResources,
    on_node: bool,
) -> Result<LinuxResources, OciError> {
    let mut asked = asked.clone();
    // The kernel has the two in one file.
    if asked.cpu_quota != 0 || asked.cpu_period != 0 {
        (asked.cpu_quota, asked.cpu_period) = (merged.cpu_quota, merged.cpu_period);
    }
    if asked.memory_swap_limit_in_bytes != 0 && asked.memory_limit_in_bytes == 0 {
        asked.memory_limit_in_bytes = merged.memory_limit_in_bytes;
    }
    build(&asked, on_node)
}

/// What a container's limits are after an update: what the update leaves unset stays.
pub fn merged(
    old: &LinuxContainerResources,
    update: &LinuxContainerResources,
) -> LinuxContainerResources {
    let keep = |new: i64, old: i64| if new == 0 { old } else { new };
    let keep_text = |new: &str, old: &str| if new.is_empty() { old } else { new }.to_owned();
    let mut unified = old.unified.clone();
    unified.extend(
        update
            .unified
            .iter()
            .map(|(key, value)| (key.clone(), value.clone())),
    );
    LinuxContainerResources {
        cpu_period: keep(update.cpu_period, old.cpu_period),
        cpu_quota: keep(update.cpu_quota, old.cpu_quota),
        cpu_shares: keep(update.cpu_shares, old.cpu_shares),
        memory_limit_in_bytes: keep(update.memory_limit_in_bytes, old.memory_limit_in_bytes),
        // For the VM (`sandbox::oom_score`). A container's processes keep what they have: the kernel has no
        // call to change it for all of them, and containerd does not either.
        oom_score_adj: keep(update.oom_score_adj, old.oom_score_adj),
        cpuset_cpus: keep_text(&update.cpuset_cpus, &old.cpuset_cpus),
        cpuset_mems: keep_text(&update.cpuset_mems, &old.cpuset_mems),
        hugepage_limits: merged_pages(&old.hugepage_limits, &update.hugepage_limits),
        unified,
        memory_swap_limit_in_bytes: keep(update.memory_swap_limit_in_bytes, kept_swap(old, update)),
    }
}

/// Limits on pages of the sizes that an update does not name stay.
fn merged_pages(old: &[HugepageLimit], update: &[HugepageLimit]) -> Vec<HugepageLimit> {
    let stays = |limit: &&HugepageLimit| {
        let named = update.iter().any(|new| new.page_size == limit.page_size);
        !named
    };
    old.iter().filter(stays).chain(update).cloned().collect()
}

/// Memory and swap together after an update that does not name it: the kernel counts swap alone, and
/// so the part that is swap stays.
fn kept_swap(old: &LinuxContainerResources, update: &LinuxContainerResources) -> i64 {
    let (memory, total) = (old.memory_limit_in_bytes, old.memory_swap_limit_in_bytes);
    match update.memory_limit_in_bytes {
        new if new > 0 && memory > 0 && total > 0 => {
            new.saturating_add(total.saturating_sub(memory))
        }
        // Memory alone has no limit any more; the two together have none either.
        new if new < 0 && total > 0 => -1,
        _ => total,
    }
}

#[cfg(test)]
mod tests;
