//! Tables: what is given, and what comes of it.

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

fn config() -> Config {
    let file = "[vmm]\noverhead_mib = 20\n[sandbox]\nmemory_mib = 512\nmin_memory_mib = 80\n\
                guest_overhead_mib = 62\nmax_memory_mib = 2048\n";
    let mut config = Config::parse(std::path::Path::new("t"), file).unwrap();
    (config.sandbox.vcpus, config.sandbox.max_vcpus) = (2, 8);
    config
}

fn linux(
    resources: Option<LinuxContainerResources>,
    overhead: Option<LinuxContainerResources>,
) -> LinuxPodSandboxConfig {
    LinuxPodSandboxConfig {
        resources,
        overhead,
        ..Default::default()
    }
}

/// A pod's cgroup, as the kubelet makes it: its own limit, MiB and thousandths of a CPU.
fn cgroup(mib: Option<u64>, cpus: Option<u64>) -> PodLimits {
    PodLimits {
        exists: true,
        memory: mib.map(|mib| mib << 20),
        cpus,
        above: None,
    }
}

fn above(mib: u64, limits: PodLimits) -> PodLimits {
    PodLimits {
        above: Some((mib << 20, "/kubepods".into())),
        ..limits
    }
}

fn given<'a>(
    config: &'a Config,
    linux: &'a LinuxPodSandboxConfig,
    cgroup: &'a PodLimits,
) -> Given<'a> {
    Given {
        sandbox: &config.sandbox,
        vmm: &config.vmm,
        linux: Some(linux),
        cgroup,
    }
}

fn of(linux: &LinuxPodSandboxConfig, cgroup: &PodLimits) -> Result<Shape, SandboxError> {
    shape(given(&config(), linux, cgroup))
}

#[test]
fn a_limit_is_the_containers_and_the_machine_comes_on_top() {
    // Overhead and cgroup of the pod; the guest, what its containers may use, and whether the VM is
    // charged beside the pod.
    let table = [
        // The smallest pods of the world start.
        (0, 4, 80, 4, true),
        (0, 16, 80, 16, true),
        (0, 64, 128, 64, true),
        (0, 1024, 1104, 1024, true),
        // An overhead that is enough: all is charged to the pod, and the guest has all there is.
        (160, 160 + 64, 203, 64, false),
        (160, 160 + 1024, 1159, 1024, false),
        // One that is not.
        (30, 30 + 64, 128, 64, true),
    ];
    for (overhead, limit, guest, containers, beside) in table {
        let over = resources(0, overhead);
        let limit = u64::try_from(limit).unwrap();
        let got = of(&linux(resources(0, 1), over), &cgroup(Some(limit), None)).unwrap();
        let limits = got.limits.unwrap();
        let case = format!("{overhead} in {limit}: {got:?}");
        assert_eq!(got.memory_mib, guest, "{case}");
        assert_eq!(got.containers_memory, Some(containers << 20), "{case}");
        assert_eq!((limits.beside, limits.elastic), (beside, false), "{case}");
        if !beside {
            assert!(total_mib(&config().vmm, got.memory_mib) <= limit, "{case}");
        }
    }
}

#[test]
fn the_example_runtime_classs_overhead_is_enough_for_limits_up_to_a_gibibyte_and_a_half() {
    let config = Config::parse(std::path::Path::new("t"), "").unwrap();
    // packaging/kubernetes/runtimeclass-kvm.yaml
    let linux = linux(None, resources(0, 96));
    for limit in (4..=1536).step_by(4) {
        let cgroup = cgroup(Some(limit + 96), None);
        let got = shape(given(&config, &linux, &cgroup)).unwrap();
        assert!(!got.limits.unwrap().beside, "{limit}: {got:?}");
        assert!(
            total_mib(&config.vmm, got.memory_mib) <= limit + 96,
            "{limit}"
        );
    }
}

#[test]
fn without_a_limit_of_the_pod_it_starts_small_and_may_grow() {
    let table = [
        // None at all, and a sum over some of the containers only.
        (0, cgroup(None, None), 512, 2048),
        (96, cgroup(None, None), 512, 2048),
        (1024, cgroup(None, None), 1104, 2048),
        (0, PodLimits::default(), 512, 2048),
        // As far as those above it let it.
        (0, above(1044, cgroup(None, None)), 512, 1020),
        (0, above(300, cgroup(None, None)), 278, 278),
    ];
    for (sum, cgroup, guest, most) in table {
        let got = of(&linux(resources(0, sum), resources(0, 32)), &cgroup).unwrap();
        let limits = got.limits.unwrap();
        let case = format!("{sum} {cgroup:?}: {got:?}");
        assert_eq!(
            (got.memory_mib, limits.max_memory_mib),
            (guest, most),
            "{case}"
        );
        assert_eq!(got.containers_memory, None, "{case}");
        assert_eq!(
            (limits.beside, limits.elastic),
            (false, most > guest),
            "{case}"
        );
    }
}

#[test]
fn where_no_kubelet_made_a_cgroup_the_sum_is_the_limit() {
    let got = of(&linux(resources(0, 16), None), &PodLimits::default()).unwrap();
    assert_eq!(
        (got.memory_mib, got.containers_memory),
        (80, Some(16 << 20))
    );
    let got = of(
        &linux(resources(0, 256), resources(0, 512)),
        &PodLimits::default(),
    );
    assert_eq!(got.unwrap().memory_mib, 745);
}

#[test]
fn processors_are_those_that_the_pod_may_use() {
    let none = PodLimits::default();
    let table = [
        // The cgroup's own quota counts where there is a cgroup: CRI's sum may leave out containers.
        (None, cgroup(None, None), 2),
        (resources(100_000, 0), cgroup(None, None), 2),
        (resources(100_000, 0), cgroup(None, Some(2_500)), 3),
        (None, cgroup(None, Some(500)), 1),
        (None, cgroup(None, Some(90_000)), 4),
        // And the sum where there is none.
        (None, none.clone(), 2),
        (resources(20_000, 0), none.clone(), 1),
        (resources(150_000, 0), none.clone(), 2),
        (resources(10_000_000, 0), none, 4),
    ];
    for (res, cgroup, vcpus) in table {
        let got = of(&linux(res.clone(), resources(5_000, 0)), &cgroup).unwrap();
        assert_eq!(got.vcpus, vcpus, "{res:?} {cgroup:?}");
        assert!(got.limits.unwrap().max_vcpus >= 4);
    }
    // More than it boots with come later.
    let many = of(&linux(None, None), &cgroup(None, Some(90_000))).unwrap();
    let config = config();
    let cgroup = cgroup(None, Some(90_000));
    let given = Given {
        sandbox: &config.sandbox,
        vmm: &config.vmm,
        linux: None,
        cgroup: &cgroup,
    };
    assert_eq!(resized(given, Sum::default(), many).unwrap().vcpus, 8);
}

#[test]
fn a_changed_limit_changes_the_size_within_what_the_vm_was_made_for() {
    let config = config();
    let sum = |cpus, mib: Option<u64>, huge: u64| Sum {
        memory: mib.map(|mib| mib << 20),
        cpus,
        huge: huge << 20,
    };
    let boot = of(&linux(None, None), &cgroup(Some(256), Some(1_000))).unwrap();
    assert_eq!((boot.vcpus, boot.memory_mib), (1, 324));
    let within = of(
        &linux(None, resources(0, 160)),
        &cgroup(Some(256 + 160), Some(1_000)),
    );
    let within = within.unwrap();
    assert_eq!((within.vcpus, within.memory_mib), (1, 394));
    let free = of(&linux(None, None), &cgroup(None, None)).unwrap();
    let alone = of(&linux(resources(100_000, 160), None), &PodLimits::default()).unwrap();
    assert_eq!((alone.vcpus, alone.memory_mib), (1, 226));
    let crictl = PodLimits::default();
    let table = [
        // from, cgroup, containers' sum -> vcpus, memory, what containers may use
        (
            boot,
            cgroup(Some(512), Some(2_000)),
            sum(None, None, 0),
            2,
            584,
            Some(512),
        ),
        (
            boot,
            cgroup(Some(256), Some(1_000)),
            sum(Some(500), Some(100), 0),
            1,
            324,
            Some(256),
        ),
        (
            boot,
            cgroup(Some(256), Some(1_000)),
            sum(Some(2_500), None, 0),
            3,
            324,
            Some(256),
        ),
        // Not below what it booted with, not beyond what it was made for.
        (
            boot,
            cgroup(Some(64), Some(100)),
            sum(None, None, 0),
            1,
            324,
            Some(64),
        ),
        (
            boot,
            cgroup(Some(9_999), Some(99_000)),
            sum(None, None, 0),
            4,
            2048,
            Some(9_999),
        ),
        // Huge pages come on top, as far as the cgroup lets them.
        (
            boot,
            cgroup(Some(256), None),
            sum(None, None, 8),
            2,
            332,
            Some(256),
        ),
        (
            within,
            cgroup(Some(416), Some(1_000)),
            sum(None, None, 512),
            1,
            394,
            Some(256),
        ),
        (
            within,
            cgroup(Some(516), Some(1_000)),
            sum(None, None, 0),
            1,
            494,
            Some(356),
        ),
        // A pod without a limit keeps what it has; how much it wants, it says itself.
        (
            free,
            cgroup(None, None),
            sum(None, Some(96), 0),
            2,
            512,
            None,
        ),
        (
            free,
            cgroup(None, None),
            sum(None, Some(1_024), 0),
            2,
            1104,
            None,
        ),
        // Without a kubelet a container can be given more than its pod had.
        (
            alone,
            crictl,
            sum(Some(2_000), Some(300), 0),
            2,
            368,
            Some(300),
        ),
    ];
    for (from, cgroup, sum, vcpus, memory_mib, containers) in table {
        let case = format!("{from:?} {cgroup:?} {sum:?}");
        let overhead = resources(0, if from == within { 160 } else { 0 });
        let limit = match cgroup.exists {
            true => None,
            false => resources(100_000, 160),
        };
        let linux = linux(limit, overhead);
        let got = resized(given(&config, &linux, &cgroup), sum, from).unwrap();
        assert_eq!((got.vcpus, got.memory_mib), (vcpus, memory_mib), "{case}");
        assert_eq!(
            got.containers_memory,
            containers.map(|mib| mib << 20),
            "{case}"
        );
    }
    let fixed = Shape {
        limits: None,
        ..boot
    };
    let cgroup = cgroup(Some(512), None);
    let given = Given {
        sandbox: &config.sandbox,
        vmm: &config.vmm,
        linux: None,
        cgroup: &cgroup,
    };
    assert_eq!(resized(given, Sum::default(), fixed).unwrap(), fixed);
}

#[test]
fn a_sum_needs_a_limit_on_every_container() {
    let (one, two) = (
        resources(50_000, 64).unwrap(),
        resources(150_000, 32).unwrap(),
    );
    let none = LinuxContainerResources::default();
    let of = |list: &[&LinuxContainerResources]| Sum::of(list.iter().copied()).unwrap();
    let both = of(&[&one, &two]);
    assert_eq!((both.memory, both.cpus), (Some(96 << 20), Some(2_000)));
    let partial = of(&[&one, &none]);
    assert_eq!((partial.memory, partial.cpus), (None, None));
    assert_eq!(of(&[]), Sum::default());
}

#[test]
fn bad_numbers_and_cgroups_that_leave_too_little_are_refused() {
    let bad = [
        linux(resources(0, -1), None),
        linux(None, resources(0, -1)),
        LinuxPodSandboxConfig {
            resources: Some(LinuxContainerResources {
                cpu_quota: 1,
                cpu_period: -1,
                ..Default::default()
            }),
            ..Default::default()
        },
    ];
    for bad in bad {
        let refused = of(&bad, &PodLimits::default());
        assert!(
            matches!(refused, Err(SandboxError::Invalid { .. })),
            "{bad:?}: {refused:?}"
        );
    }
    let error = of(&linux(None, None), &above(90, cgroup(Some(16), None))).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("/kubepods allows 90 MiB") && text.contains("80 MiB are needed"),
        "{text}"
    );
}
