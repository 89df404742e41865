//! Tables of pods as kubelets make them, and what holds for any.

use proptest::prelude::*;

use super::*;

fn set(text: &str) -> NumberSet {
    NumberSet::parse(text).unwrap()
}

/// Of an id, a set ("" for none) and a limit (0 for none).
fn wish(id: &str, cpus: &str, limit: usize) -> Wish {
    Wish {
        id: id.to_owned(),
        cpus: Some(set(cpus)).filter(|set| !set.is_empty()),
        limit: Some(limit).filter(|limit| *limit > 0),
        exclusive: true,
    }
}

#[test]
fn processors_that_other_pods_have_too_are_not_taken_one_by_one() {
    let shared = Wish {
        exclusive: false,
        ..wish("shared", "4-7", 0)
    };
    let own = wish("own", "2-3", 2);
    let plan = plan(&[own, shared], &set("0-7"), 6, 8, &[]).unwrap();
    let (vcpus, lists) = shown(&plan);
    assert_eq!(vcpus, owned(&["2", "3", "4-7", "4-7", "4-7", "4-7"]));
    assert_eq!(lists, owned(&["own:0-1", "shared:2-5"]));
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

fn shown(plan: &Plan) -> (Vec<String>, Vec<String>) {
    let list = |(id, vcpus): (&String, &NumberSet)| format!("{id}:{vcpus}");
    (
        plan.vcpus.iter().map(ToString::to_string).collect(),
        plan.lists.iter().map(list).collect(),
    )
}

#[test]
fn containers_have_as_many_processors_as_their_sets() {
    type Case<'a> = (&'a [Wish], &'a str, usize, &'a [&'a str], &'a [&'a str]);
    let table: &[Case<'_>] = &[
        // One container with two processors of its own, with and without a limit.
        (&[wish("a", "2-3", 2)], "0-7", 2, &["2", "3"], &["a:0-1"]),
        (&[wish("a", "2-3", 0)], "0-7", 8, &["2", "3"], &["a:0-1"]),
        // The RuntimeClass's overhead makes the pod's quota a third.
        (&[wish("a", "2-3", 2)], "0-7", 3, &["2", "3"], &["a:0-1"]),
        // Two with their own.
        (
            &[wish("a", "2-3", 2), wish("b", "6", 1)],
            "0-7",
            3,
            &["6", "2", "3"],
            &["a:1-2", "b:0"],
        ),
        // A sidecar in the shared pool, which has what its limit lets it use and runs anywhere there.
        (
            &[wish("a", "2-3", 2), wish("s", "0-1,4-7", 1)],
            "0-7",
            3,
            &["2", "3", "0-1,4-7"],
            &["a:0-1", "s:2"],
        ),
        // DisableCPUQuotaWithExclusiveCPUs: the pod has no quota at all.
        (
            &[wish("a", "2-3", 0), wish("s", "0-1,4-5", 1)],
            "0-5",
            8,
            &["2", "3", "0", "1", "4", "5"],
            &["a:0-1", "s:2-5"],
        ),
        // The shared pool alone: the limit says how many.
        (&[wish("s", "0-5", 1)], "0-7", 1, &["0-5"], &["s:0"]),
        (&[wish("s", "0-1", 0)], "0-7", 8, &["0", "1"], &["s:0-1"]),
        // Two in it use the same.
        (
            &[wish("s", "0-3", 1), wish("t", "0-3", 1)],
            "0-7",
            2,
            &["0-3", "0-3"],
            &["s:0-1", "t:0-1"],
        ),
        // One without a set beside one with: all are the pod's, and its own are kept apart.
        (
            &[wish("a", "2", 1), wish("n", "", 1)],
            "0-3",
            2,
            &["2", "0-1,3"],
            &["a:0"],
        ),
        // Sets that overlap.
        (
            &[wish("a", "0-1", 0), wish("b", "1-2", 0)],
            "0-3",
            4,
            &["0", "1", "2"],
            &["a:0-1", "b:1-2"],
        ),
        // The limit of the pod is below what keeps them apart.
        (
            &[wish("a", "0", 0), wish("b", "1", 0)],
            "0-3",
            1,
            &["0", "1"],
            &["a:0", "b:1"],
        ),
    ];
    for (wishes, allowed, wanted, pins, lists) in table {
        let allowed = set(allowed);
        let there = vcpus(wishes, &allowed, *wanted);
        let plan = plan(wishes, &allowed, *wanted, there, &[]).unwrap();
        let (vcpus, mine) = shown(&plan);
        assert_eq!((vcpus.len(), vcpus), (there, owned(pins)));
        assert_eq!(mine, owned(lists));
    }
}

#[test]
fn too_few_to_keep_them_apart_are_refused() {
    let wishes = [wish("a", "0", 1), wish("b", "1", 1), wish("c", "2-3", 1)];
    let allowed = set("0-3");
    assert_eq!(vcpus(&wishes, &allowed, 1), 3);
    let error = plan(&wishes, &allowed, 1, 2, &[]).unwrap_err();
    assert_eq!(error, TooFew { needed: 3 });
    plan(&wishes, &allowed, 1, 3, &[]).unwrap();
    // One that is in both sets serves both.
    let wishes = [wish("a", "0-1", 1), wish("b", "1-2", 1)];
    let plan = plan(&wishes, &allowed, 1, 1, &[]).unwrap();
    assert_eq!(shown(&plan).1, ["a:0", "b:0"]);
}

#[test]
fn what_was_in_force_stays_when_others_come_and_go() {
    let allowed = set("0-7");
    let go = |wishes: &[Wish], before: &[NumberSet]| {
        let there = vcpus(wishes, &allowed, 8);
        plan(wishes, &allowed, 8, there, before).unwrap()
    };
    let first = go(&[wish("a", "2-4", 0), wish("s", "0-1,5-7", 0)], &[]);
    assert_eq!(first.lists["a"], set("0-2"));
    // A smaller one is made, and the pool shrinks for it.
    let second = [
        wish("a", "2-4", 0),
        wish("s", "0-1,5,7", 0),
        wish("b", "6", 0),
    ];
    let second = go(&second, &first.vcpus);
    assert_eq!(second.lists["a"], set("0-2"));
    assert_eq!(second.lists["b"].len(), 1);
    // It ends, and another pod gets one more of the pool.
    let third = go(&[wish("a", "2-4", 0), wish("s", "1,5,7", 0)], &second.vcpus);
    assert_eq!(third.lists["a"], set("0-2"));
    assert_eq!(third.vcpus.len(), 6);
}

fn wishes() -> impl Strategy<Value = Vec<Wish>> {
    let cpus = proptest::option::of(proptest::collection::btree_set(0u16..12, 1..6));
    let wish = (cpus, proptest::option::of(1usize..6));
    proptest::collection::vec(wish, 1..6).prop_map(|wishes| {
        let wish = |(number, (cpus, limit)): (usize, (Option<BTreeSet<u16>>, _))| Wish {
            id: number.to_string(),
            cpus: cpus.map(|cpus| cpus.into_iter().collect()),
            limit,
            exclusive: number % 2 == 0,
        };
        wishes.into_iter().enumerate().map(wish).collect()
    })
}

proptest! {
    #[test]
    fn each_container_runs_within_its_set(wishes in wishes(), wanted in 0usize..16, there in 1usize..16) {
        let allowed = set("0-11");
        let Ok(plan) = plan(&wishes, &allowed, wanted, there, &[]) else {
            prop_assert!(there < wishes.len());
            return Ok(());
        };
        let union = union(&wishes, &allowed);
        prop_assert!(plan.vcpus.len() <= there.min(union.len()));
        for cpus in &plan.vcpus {
            prop_assert!(!cpus.is_empty() && cpus.is_within(&union));
        }
        for wish in &wishes {
            let Some(cpus) = &wish.cpus else { continue };
            let list = &plan.lists[&wish.id];
            prop_assert!(!list.is_empty() && list.len() <= cpus.len());
            for vcpu in list.iter() {
                prop_assert!(plan.vcpus[usize::from(vcpu)].is_within(cpus));
            }
            for other in &wishes {
                if other.cpus.as_ref().is_some_and(|other| (other & cpus).is_empty()) {
                    prop_assert!((&plan.lists[&other.id] & list).is_empty());
                }
            }
        }
        // What is in force already is left as it is.
        let again = super::plan(&wishes, &allowed, wanted, there, &plan.vcpus).unwrap();
        prop_assert_eq!(again, plan);
    }

    #[test]
    fn as_many_as_are_wanted_suffice(wishes in wishes(), wanted in 0usize..16) {
        let allowed = set("0-11");
        let there = vcpus(&wishes, &allowed, wanted);
        let plan = plan(&wishes, &allowed, wanted, there, &[]).unwrap();
        prop_assert_eq!(plan.vcpus.len(), there);
        for wish in &wishes {
            let Some(cpus) = &wish.cpus else { continue };
            let least = cpus.len().min(wish.limit.unwrap_or(wanted)).min(wanted.max(1));
            prop_assert!(plan.lists[&wish.id].len() >= least);
        }
    }
}
