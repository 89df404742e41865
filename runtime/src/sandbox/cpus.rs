//! A pod's place on the node: the processors and memory nodes that the kubelet's CPU and memory managers
//! give its containers (`cpuset_cpus`, `cpuset_mems`), in force for a VM.
//!
//! The leaf cgroup holds the VMM, all of its threads, to what the containers have together; that bounds
//! a hostile VMM, too, and outlives the daemon. Within it the VMM pins its vCPUs, and in the guest each
//! container has the vCPUs that run in its own set (`cpu_plan`). Memory nodes are the pod's as a whole: the
//! guest has one.
//!
//! Not here: how many vCPUs there are (`resize`), and containers of pods on the host, whose own cgroups the
//! agent binds.

use std::{path::Path, time::Duration};

use bulkhead_contract::vmm::{ErrorKind, Pin, PinGroup};
use bulkhead_proto::{
    agent::UpdateContainerRequest,
    cri::{LinuxContainerResources, LinuxPodSandboxConfig},
};
use oci_spec::runtime::{LinuxCpuBuilder, LinuxResourcesBuilder};

use super::{
    Pod, SandboxError,
    cpu_plan::{self, Applied, InForce, TooFew, Wish},
    placement::cgroup_parent,
};
use crate::{
    app::App,
    cgroup::{self, Allowed, Leaf},
    machine::{MachineError, vm::VmmError},
    number_set::{BadSet, NumberSet},
    records::{ContainerState, Placement, SandboxRecord},
    task::blocking,
};

/// For the agent to write one file.
const DEADLINE: Duration = Duration::from_secs(20);
/// Where the kernel lists them, online or not.
const POSSIBLE: &str = "/sys/devices/system/cpu/possible";

/// What a pod's containers ask for.
#[derive(Debug)]
pub(super) enum Wishes {
    /// None runs: all stays as it is, until there is one again.
    Keep,
    /// No container has a set.
    Free,
    /// Some has, or the pod.
    Sets(Sets),
}

/// Sets of processors and memory nodes.
#[derive(Debug)]
pub(super) struct Sets {
    wishes: Vec<Wish>,
    allowed: NumberSet,
    /// As the leaf's cpuset files have them.
    cpus: String,
    mems: String,
}

impl Sets {
    /// How many vCPUs the pod has use for, where its limits give it `wanted`.
    pub(super) fn vcpus(&self, wanted: u32) -> u32 {
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
        let vcpus = cpu_plan::vcpus(&self.wishes, &self.allowed, wanted);
        u32::try_from(vcpus).unwrap_or(u32::MAX)
    }
}

/// Limits of which the sets are those that will be in force: without what the pod may not use.
///
/// # Errors
/// If a set cannot be read, is beyond what the node has, or nothing of it is left.
pub(crate) async fn within(
    app: &App,
    record: &SandboxRecord,
    limits: &LinuxContainerResources,
) -> Result<LinuxContainerResources, SandboxError> {
    let mut limits = limits.clone();
    if limits.cpuset_cpus.is_empty() && limits.cpuset_mems.is_empty() {
        return Ok(limits);
    }
    let cpus = parse("cpuset_cpus", &limits.cpuset_cpus)?;
    let mems = parse("cpuset_mems", &limits.cpuset_mems)?;
    let linux = record.config.linux.clone().unwrap_or_default();
    let allowed = allowed(app, record, &linux).await?;
    let root = app.config.cgroup.root.clone();
    let possible = blocking(move || Ok::<_, SandboxError>(possible(&root))).await?;
    if !cpus.is_within(&possible) {
        return Err(SandboxError::CpuSet {
            field: "cpuset_cpus",
            value: limits.cpuset_cpus,
            why: format!("numerical result out of range: the node has {possible}"),
        });
    }
    limits.cpuset_cpus = narrowed("cpuset_cpus", &cpus, &allowed.cpus)?;
    limits.cpuset_mems = narrowed("cpuset_mems", &mems, &allowed.mems)?;
    Ok(limits)
}

/// The processors that the node's kernel has numbers for: with higher ones there will never be any. Blocks.
fn possible(root: &Path) -> NumberSet {
    let text = std::fs::read_to_string(POSSIBLE).unwrap_or_default();
    let mut possible = NumberSet::parse(text.trim()).unwrap_or_default();
    if let Ok(allowed) = cgroup::allowed(root, root) {
        possible.extend(&allowed.cpus);
    }
    possible
}

fn parse(field: &'static str, text: &str) -> Result<NumberSet, SandboxError> {
    NumberSet::parse(text).map_err(|why: BadSet| SandboxError::CpuSet {
        field,
        value: format!("{text:.80}"),
        why: why.to_string(),
    })
}

fn narrowed(
    field: &'static str,
    asked: &NumberSet,
    allowed: &NumberSet,
) -> Result<String, SandboxError> {
    let left = asked & allowed;
    if left.is_empty() && !asked.is_empty() {
        return Err(SandboxError::CpuSet {
            field,
            value: asked.to_string(),
            why: format!(
                "invalid argument: the pod may use {allowed}, as far as the node has that online"
            ),
        });
    }
    Ok(left.to_string())
}

/// What the pod may use: its cgroup, the one its machine is in, and its own set where CRI gives it one.
async fn allowed(
    app: &App,
    record: &SandboxRecord,
    linux: &LinuxPodSandboxConfig,
) -> Result<Allowed, SandboxError> {
    let root = app.config.cgroup.root.clone();
    let pod = cgroup_parent(app, &record.config)?;
    let above = record.cgroup().and_then(Path::parent).map(Path::to_owned);
    let own = linux.resources.clone().unwrap_or_default();
    blocking(move || {
        let of = |cgroup: &Path| {
            cgroup::allowed(&root, cgroup).map_err(|source| SandboxError::Os {
                action: "read which processors the pod may use".to_owned(),
                source,
            })
        };
        let mut allowed = of(&pod)?;
        let mut bound = |cpus: &NumberSet, mems: &NumberSet| {
            for (set, by) in [(&mut allowed.cpus, cpus), (&mut allowed.mems, mems)] {
                let both = &*set & by;
                // What leaves nothing is no bound: the kernel ignores it as well.
                if !both.is_empty() {
                    *set = both;
                }
            }
        };
        if let Some(above) = above.filter(|above| *above != pod) {
            let above = of(&above)?;
            bound(&above.cpus, &above.mems);
        }
        bound(
            &NumberSet::parse(&own.cpuset_cpus).unwrap_or_default(),
            &NumberSet::parse(&own.cpuset_mems).unwrap_or_default(),
        );
        Ok(allowed)
    })
    .await
}

/// What these containers, with their limits, ask for.
///
/// # Errors
/// If the node does not say what there is.
pub(super) async fn wishes<'a>(
    app: &App,
    record: &SandboxRecord,
    linux: &LinuxPodSandboxConfig,
    containers: impl Iterator<Item = (&'a str, &'a LinuxContainerResources)>,
) -> Result<Wishes, SandboxError> {
    let containers: Vec<_> = containers.collect();
    if containers.is_empty() {
        return Ok(Wishes::Keep);
    }
    let own = linux.resources.iter();
    let mut all = containers.iter().map(|(_, limits)| *limits).chain(own);
    if !all.any(has_set) {
        return Ok(Wishes::Free);
    }
    let allowed = allowed(app, record, linux).await?;
    // What is recorded was allowed. If it is not any more the kernel has nothing to hold it to.
    let set = |text: &str, allowed: &NumberSet| {
        let set = &NumberSet::parse(text).unwrap_or_default() & allowed;
        Some(set).filter(|set| !set.is_empty())
    };
    let mut mems = Some(NumberSet::default());
    let mut wishes = Vec::new();
    for (id, limits) in &containers {
        let own = set(&limits.cpuset_mems, &allowed.mems);
        mems = mems.zip(own).map(|(mut all, own)| {
            all.extend(&own);
            all
        });
        let cpus = set(&limits.cpuset_cpus, &allowed.cpus);
        wishes.push(Wish {
            id: (*id).to_owned(),
            exclusive: cpus.as_ref().is_some_and(|cpus| is_exclusive(limits, cpus)),
            cpus,
            limit: limit(limits),
        });
    }
    let own = linux.resources.clone().unwrap_or_default();
    let all_cpus = wishes.iter().any(|wish| wish.cpus.is_none()) && own.cpuset_cpus.is_empty();
    Ok(Wishes::Sets(Sets {
        // Nothing said follows the cgroup above when that changes.
        cpus: match all_cpus {
            true => String::new(),
            false => cpu_plan::union(&wishes, &allowed.cpus).to_string(),
        },
        mems: match mems {
            Some(mems) => mems.to_string(),
            None if own.cpuset_mems.is_empty() => String::new(),
            None => allowed.mems.to_string(),
        },
        wishes,
        allowed: allowed.cpus,
    }))
}

/// Whether limits name processors or memory nodes.
pub(super) fn has_set(limits: &LinuxContainerResources) -> bool {
    !limits.cpuset_cpus.is_empty() || !limits.cpuset_mems.is_empty()
}

/// So many processors a limit lets a container use, rounded up.
fn limit(limits: &LinuxContainerResources) -> Option<usize> {
    let quota = usize::try_from(limits.cpu_quota).ok().filter(|q| *q > 0)?;
    let period = usize::try_from(limits.cpu_period).ok().filter(|p| *p > 0);
    Some(quota.div_ceil(period.unwrap_or(100_000)))
}

/// Whether a container with this set asks for as many processors as are in it: the kubelet's static CPU
/// manager gives those to it alone, and to all others what is left for all of them.
fn is_exclusive(limits: &LinuxContainerResources, cpus: &NumberSet) -> bool {
    let shares = usize::try_from(limits.cpu_shares).unwrap_or(0);
    limit(limits) == Some(cpus.len()) || shares == cpus.len().saturating_mul(1024)
}

/// Brings a VM with so many vCPUs, of which the pod's limits let it use `wanted`, to where its containers are
/// to run. What is in force already is left alone.
///
/// # Errors
/// If a step fails: then what is in force is not known, and the next time all is done anew.
pub(super) async fn apply(
    app: &App,
    pod: &Pod,
    wishes: &Wishes,
    (wanted, there): (u32, u32),
    applied: &mut Applied,
) -> Result<(), SandboxError> {
    let Some(record) = app.records.sandboxes.get(&pod.id) else {
        return Ok(());
    };
    let new = match wishes {
        Wishes::Keep => return Ok(()),
        Wishes::Free => None,
        Wishes::Sets(sets) => Some(in_force(&record, sets, wanted, there)?),
    };
    match applied {
        Applied::Known(known) if *known == new => return Ok(()),
        Applied::Unknown if new.is_none() && record.placement.is_none() && !record.placing => {
            *applied = Applied::Known(None);
            return Ok(());
        }
        _ => {}
    }
    let old = std::mem::take(applied);
    let (cpus, mems) = match &new {
        Some(new) => (new.place.cpus.clone(), new.place.mems.clone()),
        None => Default::default(),
    };
    let first = new.is_some() && record.placement.is_none();
    if first && !record.placing {
        // What is in force then, whatever becomes of this, is not what the record says.
        let begun = |record: &mut SandboxRecord| record.placing = true;
        app.records.sandboxes.update(&pod.id, begun).await?;
    }
    place(app, &record, cpus, mems).await?;
    if !pin(pod, wishes, new.as_ref()).await? {
        // A pod of an earlier release runs on as it did.
        place(app, &record, String::new(), String::new()).await?;
        let ended = |record: &mut SandboxRecord| {
            record.placement = None;
            record.placing = false;
        };
        app.records.sandboxes.update(&pod.id, ended).await?;
        *applied = Applied::Known(new);
        return Ok(());
    }
    if let Some(new) = &new {
        for (id, list) in &new.plan.lists {
            let same =
                matches!(&old, Applied::Known(Some(old)) if old.plan.lists.get(id) == Some(list));
            if !same {
                bind(app, pod, id, list).await?;
            }
        }
    }
    let placement = new.as_ref().map(|new| new.place.clone());
    if placement != record.placement || record.placing || first {
        let change = move |record: &mut SandboxRecord| {
            record.placement = placement;
            record.placing = false;
        };
        app.records.sandboxes.update(&pod.id, change).await?;
    }
    tracing::info!(pod = pod.id, in_force = ?new.as_ref().map(|new| &new.place), "the pod's processors");
    *applied = Applied::Known(new);
    Ok(())
}

/// Binds the VM's cgroup.
async fn place(
    app: &App,
    record: &SandboxRecord,
    cpus: String,
    mems: String,
) -> Result<(), SandboxError> {
    let Some(leaf) = record.cgroup().map(Leaf::at) else {
        return Ok(());
    };
    let root = app.config.cgroup.root.clone();
    blocking(move || Ok(leaf.place(&root, &cpus, &mems)?)).await
}

fn in_force(
    record: &SandboxRecord,
    sets: &Sets,
    wanted: u32,
    there: u32,
) -> Result<InForce, SandboxError> {
    let before = record.placement.iter().flat_map(|place| &place.vcpus);
    let before: Vec<_> = before
        .map(|set| NumberSet::parse(set).unwrap_or_default())
        .collect();
    let number = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
    let (wanted, there) = (number(wanted), number(there));
    let plan = cpu_plan::plan(&sets.wishes, &sets.allowed, wanted, there, &before);
    let plan = plan.map_err(|TooFew { needed }| SandboxError::TooFewCpus {
        id: record.id.clone(),
        needed,
        there,
    })?;
    Ok(InForce {
        place: Placement {
            cpus: sets.cpus.clone(),
            mems: sets.mems.clone(),
            vcpus: plan.vcpus.iter().map(ToString::to_string).collect(),
        },
        plan,
    })
}

/// Has the VMM pin its vCPUs. False when one of an earlier release cannot, and must: then the containers
/// cannot be kept apart.
async fn pin(pod: &Pod, wishes: &Wishes, new: Option<&InForce>) -> Result<bool, SandboxError> {
    let vcpus = new.map_or(&[][..], |new| &new.plan.vcpus);
    let Err(error) = pod.machine.pin(groups(vcpus)).await else {
        return Ok(true);
    };
    let unknown = matches!(
        error,
        MachineError::Vmm(VmmError::Request {
            kind: ErrorKind::BadRequest,
            ..
        })
    );
    // The cgroup alone keeps containers where they belong if they all have the same.
    let apart = match wishes {
        Wishes::Sets(sets) => sets.wishes.windows(2).any(|two| match two {
            [one, other] => one.cpus != other.cpus,
            _ => false,
        }),
        Wishes::Keep | Wishes::Free => false,
    };
    if !unknown {
        return Err(error.into());
    }
    tracing::warn!(
        pod = pod.id,
        "the VMM, of an earlier release, does not pin its vCPUs{}",
        match apart {
            true => ": its containers run on all processors, as before the upgrade",
            false => "",
        }
    );
    Ok(!apart)
}

/// vCPUs by where they run.
fn groups(vcpus: &[NumberSet]) -> Pin {
    let mut groups: Vec<(&NumberSet, PinGroup)> = Vec::new();
    for (vcpu, cpus) in vcpus.iter().enumerate() {
        let Ok(vcpu) = u8::try_from(vcpu) else {
            // No VM has so many.
            break;
        };
        match groups.iter_mut().find(|(other, _)| *other == cpus) {
            Some((_, group)) => group.vcpus.push(vcpu),
            None => groups.push((
                cpus,
                PinGroup {
                    vcpus: vec![vcpu],
                    cpus: cpus.iter().collect(),
                },
            )),
        }
    }
    Pin {
        groups: groups.into_iter().map(|(_, group)| group).collect(),
    }
}

/// Binds a container to vCPUs of its guest.
async fn bind(app: &App, pod: &Pod, id: &str, vcpus: &NumberSet) -> Result<(), SandboxError> {
    let cpu = LinuxCpuBuilder::default().cpus(vcpus.to_string()).build();
    let limits = cpu.and_then(|cpu| LinuxResourcesBuilder::default().cpu(cpu).build());
    let limits = limits.map_err(crate::oci::OciError::from)?;
    let request = UpdateContainerRequest {
        container_id: id.to_owned(),
        resources: serde_json::to_vec(&limits)
            .map_err(crate::oci::OciError::Encode)?
            .into(),
    };
    let bound = pod
        .agent
        .call(
            "bind the container to its processors",
            DEADLINE,
            |mut agent| async move { agent.update_container(request).await },
        )
        .await;
    match bound {
        Ok(_) => Ok(()),
        // It has ended meanwhile, and runs nowhere.
        Err(_) if !lives(app, id) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn lives(app: &App, id: &str) -> bool {
    let record = app.records.containers.get(id);
    record.is_some_and(|record| {
        matches!(
            record.status.state,
            ContainerState::Created | ContainerState::Running
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpus_of_one_place_are_one_group() {
        let set = |text: &str| NumberSet::parse(text).unwrap();
        let pin = groups(&[set("2"), set("4-5"), set("3"), set("4-5")]);
        let shown: Vec<_> = pin
            .groups
            .iter()
            .map(|group| (group.vcpus.as_slice(), group.cpus.as_slice()))
            .collect();
        assert_eq!(
            shown,
            [
                ([0].as_slice(), [2].as_slice()),
                (&[1, 3], &[4, 5]),
                (&[2], &[3])
            ]
        );
        assert!(groups(&[]).groups.is_empty());
    }

    #[test]
    fn what_is_not_allowed_is_left_out_or_refused() {
        let set = |text: &str| NumberSet::parse(text).unwrap();
        let allowed = set("2-5");
        assert_eq!(narrowed("f", &set(""), &allowed).unwrap(), "");
        assert_eq!(narrowed("f", &set("3,5"), &allowed).unwrap(), "3,5");
        assert_eq!(narrowed("f", &set("0-3"), &allowed).unwrap(), "2-3");
        let error = narrowed("f", &set("0-1"), &allowed).unwrap_err();
        assert!(error.to_string().contains("invalid argument"), "{error}");
        assert!(error.to_string().contains("2-5"), "{error}");
        let error = parse("cpuset_cpus", "99999").unwrap_err();
        assert!(error.to_string().contains("numerical result out of range"));
    }

    #[test]
    fn a_limit_is_rounded_up() {
        let limits = |quota, period| LinuxContainerResources {
            cpu_quota: quota,
            cpu_period: period,
            ..LinuxContainerResources::default()
        };
        assert_eq!(limit(&limits(0, 100_000)), None);
        assert_eq!(limit(&limits(-1, 0)), None);
        assert_eq!(limit(&limits(50_000, 0)), Some(1));
        assert_eq!(limit(&limits(200_000, 100_000)), Some(2));
        assert_eq!(limit(&limits(200_001, 100_000)), Some(3));
    }
}
