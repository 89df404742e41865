//! Which of the host's processors each vCPU of a pod runs on, and which vCPUs each container has. Pure.
//!
//! A container's set is one of the host's processors. The host's processors that belong to the same
//! containers are alike. Where a pod has a vCPU for each of those that are alike, and they are a container's own on the node,
//! each vCPU has one of them to itself; where its CPU limits leave it fewer, or other pods run there, too, its
//! vCPUs run on any of them: pods that share processors would all have their first vCPU on the first. A
//! container then has the vCPUs that run within its set, so that its `nproc` is the size of its set, or what its limit lets it use.

use std::collections::{BTreeMap, BTreeSet};

use crate::{number_set::NumberSet, records::Placement};

/// What a container asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wish {
    /// The container.
    pub(super) id: String,
    /// Its set, of what is allowed; `None` for all that is.
    pub(super) cpus: Option<NumberSet>,
    /// So many processors its CPU limit lets it use, rounded up.
    pub(super) limit: Option<usize>,
    /// Nobody else on the node runs there, as far as its request for CPU tells.
    pub(super) exclusive: bool,
}

/// What is done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    /// Where each vCPU runs, from the first on; those beyond run anywhere the VM may.
    pub(super) vcpus: Vec<NumberSet>,
    /// The vCPUs of each container that has a set.
    pub(super) lists: BTreeMap<String, NumberSet>,
}

/// What a daemon has done for a pod.
#[derive(Debug, Default)]
pub(super) enum Applied {
    /// It does not know: it is new, or something failed.
    #[default]
    Unknown,
    /// This is in force; `None` for nothing.
    Known(Option<InForce>),
}

/// All that is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct InForce {
    /// On the node.
    pub(super) place: Placement,
    /// And in the guest.
    pub(super) plan: Plan,
}

/// There are too few vCPUs to keep the containers apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooFew {
    /// At least so many are needed.
    pub(super) needed: usize,
}

/// Processors of the host that are the same containers'.
#[derive(Debug)]
struct Alike {
    cpus: NumberSet,
    /// By their place among the wishes.
    owners: BTreeSet<usize>,
    /// How many vCPUs run there.
    vcpus: usize,
}

/// All processors that these containers may run on together.
pub(super) fn union(wishes: &[Wish], allowed: &NumberSet) -> NumberSet {
    let mut union = NumberSet::default();
    for wish in wishes {
        union.extend(wish.cpus.as_ref().unwrap_or(allowed));
    }
    union
}

/// How many vCPUs the pod has use for, where its limits let it have `wanted`: at least as many as keep
/// the containers apart, each with what its own limit lets it use, and no more than its processors.
pub(super) fn vcpus(wishes: &[Wish], allowed: &NumberSet, wanted: usize) -> usize {
    let most = union(wishes, allowed).len();
    let all = distribute(wishes, allowed, wanted, most, false);
    let needed = all.map_or(most, |alike| alike.iter().map(|a| a.vcpus).sum());
    wanted.max(needed).clamp(1, most.max(1))
}

/// The plan for so many vCPUs, of which the pod's limits let it use `wanted`. What was in force before
/// stays as far as it can: a program may have bound its threads to its processors.
///
/// # Errors
/// If a container would have none.
pub(super) fn plan(
    wishes: &[Wish],
    allowed: &NumberSet,
    wanted: usize,
    there: usize,
    before: &[NumberSet],
) -> Result<Plan, TooFew> {
    let most = union(wishes, allowed).len().min(there);
    let mut alike = distribute(wishes, allowed, wanted, most, true)?;
    // The small ones first: what is shared by many pods comes and goes.
    alike.sort_by_key(|alike| (alike.cpus.len(), alike.cpus.iter().next()));
    let mut free: Vec<(NumberSet, &Alike)> = Vec::new();
    for part in &alike {
        let exclusive = |owner: &usize| wishes.get(*owner).is_some_and(|wish| wish.exclusive);
        match part.vcpus == part.cpus.len() && part.owners.iter().any(exclusive) {
            true => free.extend(
                part.cpus
                    .iter()
                    .map(|cpu| ([cpu].into_iter().collect(), part)),
            ),
            false => free.extend((0..part.vcpus).map(|_| (part.cpus.clone(), part))),
        }
    }
    let mut placed: Vec<Option<(NumberSet, &Alike)>> = vec![None; free.len()];
    type Fits = fn(&NumberSet, &NumberSet) -> bool;
    let same: Fits = |old, new| old == new;
    let near: Fits = |old, new| !(old & new).is_empty();
    for fits in [same, near] {
        for (place, old) in placed.iter_mut().zip(before) {
            let found = free.iter().position(|(new, _)| fits(old, new));
            if let (None, Some(found)) = (&place, found) {
                *place = Some(free.remove(found));
            }
        }
    }
    let mut rest = free.into_iter();
    let placed: Vec<_> = placed
        .into_iter()
        .filter_map(|place| place.or_else(|| rest.next()))
        .collect();
    let list = |owner: usize| {
        let own = |(vcpu, (_, alike)): (usize, &(NumberSet, &Alike))| {
            let vcpu = u16::try_from(vcpu).ok()?;
            alike.owners.contains(&owner).then_some(vcpu)
        };
        placed.iter().enumerate().filter_map(own).collect()
    };
    let with_set = wishes.iter().enumerate().filter(|(_, w)| w.cpus.is_some());
    Ok(Plan {
        lists: with_set
            .map(|(owner, wish)| (wish.id.clone(), list(owner)))
            .collect(),
        vcpus: placed.iter().map(|(cpus, _)| cpus.clone()).collect(),
    })
}

/// How many vCPUs run where: at most `most`, and with `all` so many if there is room.
fn distribute(
    wishes: &[Wish],
    allowed: &NumberSet,
    wanted: usize,
    most: usize,
    all: bool,
) -> Result<Vec<Alike>, TooFew> {
    let mut alike = alike(wishes, allowed);
    let mut left = most;
    // The smallest sets have the least choice.
    let mut order: Vec<usize> = (0..wishes.len()).collect();
    let size = |wish: &Wish| wish.cpus.as_ref().unwrap_or(allowed).len();
    order.sort_by_key(|owner| wishes.get(*owner).map_or(0, size));
    let mut short = 0;
    for owner in &order {
        if have(&alike, *owner) > 0 {
            continue;
        }
        // The one that serves most.
        let own = alike.iter_mut().filter(|a| a.owners.contains(owner));
        let Some(best) = own.max_by_key(|a| a.owners.len()) else {
            continue;
        };
        match left {
            0 => short += 1,
            _ => {
                best.vcpus += 1;
                left -= 1;
            }
        }
    }
    if short > 0 {
        return Err(TooFew {
            needed: most + short,
        });
    }
    for owner in &order {
        let Some(wish) = wishes.get(*owner) else {
            continue;
        };
        let wants = size(wish)
            .min(wish.limit.unwrap_or(wanted))
            .min(wanted.max(1));
        while left > 0 && have(&alike, *owner) < wants {
            let room = |a: &&mut Alike| a.owners.contains(owner) && a.vcpus < a.cpus.len();
            let own = alike.iter_mut().filter(room);
            // The one that is least others'.
            let Some(best) = own.min_by_key(|a| a.owners.len()) else {
                break;
            };
            best.vcpus += 1;
            left -= 1;
        }
    }
    while all && left > 0 {
        let room = |a: &&mut Alike| a.vcpus < a.cpus.len();
        let most = alike.iter_mut().filter(room);
        let Some(best) = most.max_by_key(|a| a.cpus.len() - a.vcpus) else {
            break;
        };
        best.vcpus += 1;
        left -= 1;
    }
    Ok(alike)
}

fn have(alike: &[Alike], owner: usize) -> usize {
    let own = alike.iter().filter(|a| a.owners.contains(&owner));
    own.map(|a| a.vcpus).sum()
}

fn alike(wishes: &[Wish], allowed: &NumberSet) -> Vec<Alike> {
    let mut found: BTreeMap<BTreeSet<usize>, BTreeSet<u16>> = BTreeMap::new();
    for cpu in union(wishes, allowed).iter() {
        let has = |wish: &Wish| wish.cpus.as_ref().unwrap_or(allowed).contains(cpu);
        let owners = wishes.iter().enumerate().filter(|(_, wish)| has(wish));
        let owners = owners.map(|(owner, _)| owner).collect();
        found.entry(owners).or_default().insert(cpu);
    }
    let alike = found.into_iter().map(|(owners, cpus)| Alike {
        cpus: cpus.into_iter().collect(),
        owners,
        vcpus: 0,
    });
    alike.collect()
}

#[cfg(test)]
mod tests;
