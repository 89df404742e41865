//! What is built of limits, what is refused, and what an update leaves.

use super::*;

fn with(change: impl FnOnce(&mut LinuxContainerResources)) -> LinuxContainerResources {
    let mut resources = LinuxContainerResources::default();
    change(&mut resources);
    resources
}

#[test]
fn nothing_asked_is_nothing_set() {
    let built = build(&LinuxContainerResources::default(), false).unwrap();
    assert!(built.cpu().is_none() && built.memory().is_none() && built.unified().is_none());
}

#[test]
fn what_a_kubelet_sends() {
    let asked = with(|r| {
        r.cpu_period = 100_000;
        r.cpu_quota = 20_000;
        r.cpu_shares = 204;
        r.memory_limit_in_bytes = 134_217_728;
        r.memory_swap_limit_in_bytes = 201_326_592;
        r.cpuset_cpus = "0-3".into();
        r.cpuset_mems = "0".into();
        r.hugepage_limits = vec![HugepageLimit {
            page_size: "2MB".into(),
            limit: 0,
        }];
    });
    for on_node in [false, true] {
        let built = build(&asked, on_node).unwrap();
        let cpu = built.cpu().as_ref().unwrap();
        assert_eq!(
            (cpu.quota(), cpu.period(), cpu.shares()),
            (Some(20_000), Some(100_000), Some(204))
        );
        let memory = built.memory().unwrap();
        assert_eq!(memory.limit(), Some(134_217_728));
        let huge = built.hugepage_limits().clone().unwrap();
        assert_eq!((huge[0].page_size().as_str(), huge[0].limit()), ("2MB", 0));
        // The node's processors and its swap mean nothing in a guest.
        assert_eq!(cpu.cpus().as_deref(), on_node.then_some("0-3"));
        assert_eq!(cpu.mems().as_deref(), on_node.then_some("0"));
        assert_eq!(memory.swap(), on_node.then_some(201_326_592));
    }
}

#[test]
fn lists_of_processors_are_the_kernels() {
    let list = |text: &str| build(&with(|r| r.cpuset_cpus = text.into()), true);
    for good in ["0", "0-3", "0-3,8,10-11", "1,1"] {
        let built = list(good).unwrap();
        assert_eq!(built.cpu().as_ref().unwrap().cpus().as_deref(), Some(good));
    }
    let none = list("").unwrap();
    assert!(none.cpu().is_none());
    for bad in [" ", "a", "3-", "-3", "3-1", "0,", "0\n", "0-1-2", "123456"] {
        assert!(list(bad).is_err(), "{bad:?}");
    }
    assert!(build(&with(|r| r.cpuset_mems = "x".into()), true).is_err());
}

#[test]
fn swap_counts_from_the_memory_limit() {
    let swap = |memory, swap, on_node| {
        build(
            &with(|r| {
                r.memory_limit_in_bytes = memory;
                r.memory_swap_limit_in_bytes = swap;
            }),
            on_node,
        )
    };
    assert!(swap(0, 1 << 30, true).is_err() && swap(-1, 1 << 30, true).is_err());
    assert!(swap(0, 1 << 30, false).is_ok());
    let unlimited = swap(0, -1, true).unwrap();
    assert_eq!(unlimited.memory().unwrap().swap(), Some(-1));

    let old = with(|r| {
        r.memory_limit_in_bytes = 64 << 20;
        r.memory_swap_limit_in_bytes = 80 << 20;
    });
    // Swap alone: it counts from what the container has.
    let asked = with(|r| r.memory_swap_limit_in_bytes = 96 << 20);
    let written = changed(&asked, &merged(&old, &asked), true).unwrap();
    let memory = written.memory().unwrap();
    assert_eq!(
        (memory.limit(), memory.swap()),
        (Some(64 << 20), Some(96 << 20))
    );
    // Memory alone: the swap on top stays, also where it then is less than the sum that was.
    let asked = with(|r| r.memory_limit_in_bytes = 128 << 20);
    let after = merged(&old, &asked);
    assert_eq!(after.memory_swap_limit_in_bytes, 144 << 20);
    build(&after, true).unwrap();
    let written = changed(&asked, &after, true).unwrap();
    assert_eq!(written.memory().unwrap().swap(), None);
    let asked = with(|r| r.memory_limit_in_bytes = -1);
    build(&merged(&old, &asked), true).unwrap();
}

#[test]
fn page_sizes_are_the_kernels() {
    assert_eq!(page_size("2MB"), Some(2 << 20));
    assert_eq!(page_size("64KB"), Some(64 << 10));
    assert_eq!(page_size("1GB"), Some(1 << 30));
    for bad in [
        "",
        "MB",
        "2M",
        "3MB",
        "2mB",
        "+2MB",
        "0MB",
        "2MB/../x",
        "99999999999999999999GB",
        "17179869185GB",
    ] {
        assert_eq!(page_size(bad), None, "{bad}");
    }
}

#[test]
fn impossible_numbers_are_refused() {
    type Change = Box<dyn FnOnce(&mut LinuxContainerResources)>;
    let bad: Vec<Change> = vec![
        Box::new(|r| r.cpu_shares = -1),
        Box::new(|r| r.cpu_shares = 262_145),
        Box::new(|r| r.cpu_quota = 999),
        Box::new(|r| r.cpu_quota = -2),
        Box::new(|r| r.cpu_period = 999),
        Box::new(|r| r.cpu_period = 1_000_001),
        Box::new(|r| r.memory_limit_in_bytes = 4096),
        Box::new(|r| r.memory_limit_in_bytes = -2),
        Box::new(|r| r.memory_swap_limit_in_bytes = -2),
        Box::new(|r| {
            r.memory_limit_in_bytes = 1 << 30;
            r.memory_swap_limit_in_bytes = 1 << 20;
        }),
        Box::new(|r| {
            r.hugepage_limits = vec![HugepageLimit {
                page_size: "2MB".into(),
                limit: 1,
            }];
        }),
    ];
    for (nth, change) in bad.into_iter().enumerate() {
        assert!(build(&with(change), false).is_err(), "case {nth}");
    }
    for key in [
        "",
        "memory",
        "../x.y",
        "memory/..",
        "cgroup.kill",
        "memory..max",
        "memory.max\n",
    ] {
        let asked = with(|r| {
            r.unified.insert(key.into(), "1".into());
        });
        assert!(build(&asked, false).is_err(), "{key:?}");
    }
}

#[test]
fn quota_and_period_are_written_together() {
    let old = with(|r| {
        r.cpu_quota = 30_000;
        r.cpu_period = 50_000;
    });
    for (asked, quota, period) in [
        (with(|r| r.cpu_period = 20_000), 30_000, 20_000),
        (with(|r| r.cpu_quota = 40_000), 40_000, 50_000),
        (with(|r| r.cpu_quota = -1), -1, 50_000),
    ] {
        let after = merged(&old, &asked);
        assert_eq!((after.cpu_quota, after.cpu_period), (quota, period));
        let written = changed(&asked, &after, false).unwrap();
        let cpu = written.cpu().as_ref().unwrap();
        let period = u64::try_from(period).unwrap();
        assert_eq!((cpu.quota(), cpu.period()), (Some(quota), Some(period)));
    }
    let other = with(|r| r.cpu_shares = 512);
    let written = changed(&other, &merged(&old, &other), false).unwrap();
    assert_eq!(written.cpu().as_ref().unwrap().period(), None);
}

#[test]
fn limits_on_pages_of_other_sizes_stay() {
    let limit = |page_size: &str, limit| HugepageLimit {
        page_size: page_size.to_owned(),
        limit,
    };
    let old = with(|r| r.hugepage_limits = vec![limit("2MB", 4 << 20), limit("1GB", 1 << 30)]);
    let asked = with(|r| r.hugepage_limits = vec![limit("2MB", 0)]);
    let after = merged(&old, &asked).hugepage_limits;
    assert_eq!(after, [limit("1GB", 1 << 30), limit("2MB", 0)]);
    assert_eq!(
        merged(&old, &with(|_| {})).hugepage_limits,
        old.hugepage_limits
    );
}

#[test]
fn an_update_keeps_what_it_does_not_name() {
    let old = with(|r| {
        r.cpu_shares = 512;
        r.memory_limit_in_bytes = 1 << 28;
        r.cpuset_cpus = "1".into();
    });
    let new = merged(&old, &with(|r| r.memory_limit_in_bytes = 1 << 29));
    assert_eq!((new.cpu_shares, new.memory_limit_in_bytes), (512, 1 << 29));
    assert_eq!(new.cpuset_cpus, "1");
}
