//! The choice of a profile, the default one, and those of the node.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

fn allowed(caps: &[Capability]) -> HashSet<String> {
    let profile = runtime_default(&caps.iter().copied().collect()).unwrap();
    profile
        .syscalls()
        .iter()
        .flatten()
        .filter(|rule| rule.action() == LinuxSeccompAction::ScmpActAllow && rule.args().is_none())
        .flat_map(|rule| rule.names().clone())
        .collect()
}

#[test]
fn an_ordinary_program_runs_and_the_kernels_levers_are_out_of_reach() {
    let calls = allowed(&[]);
    for call in [
        "read",
        "openat",
        "execve",
        "futex",
        "mmap",
        "epoll_wait",
        "getrandom",
        "wait4",
    ] {
        assert!(calls.contains(call), "{call}");
    }
    for call in [
        "mount",
        "unshare",
        "setns",
        "reboot",
        "kexec_load",
        "init_module",
        "bpf",
        "keyctl",
        "add_key",
        "io_uring_setup",
        "userfaultfd",
        "perf_event_open",
        "sethostname",
        "chroot",
        "swapon",
        "open_by_handle_at",
        "settimeofday",
        "iopl",
        "pivot_root",
        "clone",
        "clone3",
    ] {
        assert!(!calls.contains(call), "{call}");
    }
}

#[test]
fn capabilities_open_what_belongs_to_them() {
    let admin = allowed(&[Capability::SysAdmin]);
    for call in ["mount", "sethostname", "clone", "clone3", "unshare"] {
        assert!(admin.contains(call), "{call}");
    }
    assert!(!admin.contains("init_module"));
    assert!(allowed(&[Capability::SysModule]).contains("init_module"));
    assert!(allowed(&[Capability::SysChroot]).contains("chroot"));
}

#[test]
fn no_call_stands_in_two_plain_groups() {
    let profile: Profile = toml::from_str(DEFAULT).unwrap();
    let mut seen = HashSet::new();
    for call in profile
        .allow
        .iter()
        .flat_map(|group| group.calls.split_whitespace())
    {
        assert!(seen.insert(call), "{call} stands twice");
    }
    for group in &profile.with_capability {
        let known = Granted::of(&group.capability);
        assert!(known, "{} is no capability", group.capability);
        for call in group.calls.split_whitespace() {
            assert!(
                !seen.contains(call),
                "{call} is allowed without {}",
                group.capability
            );
        }
    }
    for group in &profile.allow_if {
        let forms = [
            !group.equal.is_empty(),
            group.less_than.is_some(),
            group.mask.is_some(),
        ];
        assert_eq!(
            forms.iter().filter(|there| **there).count(),
            1,
            "{}",
            group.calls
        );
        assert_eq!(group.mask.is_some(), group.masked_equal.is_some());
    }
}

struct Granted;
impl Granted {
    fn of(name: &str) -> bool {
        let asked = cri::Capability {
            add_capabilities: vec![name.into()],
            ..Default::default()
        };
        super::super::capabilities::Granted::decide(Some(&asked), false).is_ok()
    }
}

#[test]
fn without_sys_admin_clone_is_conditional_and_clone3_is_enosys() {
    let profile = runtime_default(&HashSet::new()).unwrap();
    let find = |name: &str| {
        let rules = profile.syscalls().iter().flatten();
        rules
            .filter(|rule| rule.names().iter().any(|n| n == name))
            .collect::<Vec<_>>()
    };
    let clone = find("clone");
    assert_eq!(clone.len(), 1);
    let arg = clone[0].args().as_ref().unwrap()[0];
    assert_eq!((arg.value(), arg.value_two()), (0x7e02_0000, Some(0)));
    assert_eq!(find("clone3")[0].errno_ret(), Some(38));
    assert_eq!(find("personality").len(), 5);
}

#[test]
fn choices() {
    let mut context = cri::LinuxContainerSecurityContext::default();
    assert_eq!(choose(&context).unwrap(), Choice::Unconfined);
    context.seccomp = Some(cri::SecurityProfile::default());
    assert_eq!(choose(&context).unwrap(), Choice::RuntimeDefault);
    context.seccomp = Some(cri::SecurityProfile {
        profile_type: ProfileType::Localhost as i32,
        localhost_ref: "/var/lib/kubelet/seccomp/a.json".into(),
    });
    assert_eq!(
        choose(&context).unwrap(),
        Choice::Localhost("/var/lib/kubelet/seccomp/a.json".into())
    );
    context.privileged = true;
    assert_eq!(choose(&context).unwrap(), Choice::Unconfined);
    context.privileged = false;
    context.seccomp = Some(cri::SecurityProfile {
        profile_type: 2,
        localhost_ref: "a".into(),
    });
    assert!(choose(&context).is_err());
    context.seccomp = Some(cri::SecurityProfile {
        profile_type: 9,
        ..Default::default()
    });
    assert!(choose(&context).is_err());
}

#[test]
fn localhost_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.json");
    std::fs::write(
        &path,
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["sethostname"],"action":"SCMP_ACT_ERRNO"}]}"#,
    )
    .unwrap();
    let profile = read_localhost(&path).unwrap();
    assert_eq!(profile.default_action(), LinuxSeccompAction::ScmpActAllow);
    assert!(matches!(
        read_localhost(&dir.path().join("none")),
        Err(OciError::SeccompFile { .. })
    ));
    assert!(matches!(
        read_localhost(dir.path()),
        Err(OciError::SeccompFile { .. })
    ));
    std::fs::write(&path, "{").unwrap();
    assert!(matches!(
        read_localhost(&path),
        Err(OciError::SeccompParse { .. })
    ));
    std::fs::write(&path, vec![b' '; 1024 * 1024 + 1]).unwrap();
    assert!(matches!(
        read_localhost(&path),
        Err(OciError::SeccompFile { .. })
    ));
}

/// The kernel's calls on x86 by name, with the numbers for programs of 64 and of 32 bits.
fn linux() -> BTreeMap<&'static str, [Option<u32>; 2]> {
    let number = |text: &str| (text != "-").then(|| text.parse().unwrap());
    include_str!("syscalls.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let words: Vec<_> = line.split(' ').collect();
            assert_eq!(words.len(), 3, "{line}");
            (words[0], [number(words[1]), number(words[2])])
        })
        .collect()
}

#[test]
fn every_system_call_of_linux_is_decided() {
    let linux = linux();
    let numbers: BTreeSet<u32> = linux.values().filter_map(|at| at[0]).collect();
    for number in (0..=336).chain(424..=471) {
        assert!(numbers.contains(&number), "the table lacks {number}");
    }
    let profile: Profile = toml::from_str(DEFAULT).unwrap();
    fn names(calls: &str) -> impl Iterator<Item = &str> {
        calls.split_whitespace()
    }
    let never: BTreeSet<&str> = profile
        ._never
        .iter()
        .flat_map(|g| names(&g.calls))
        .collect();
    let mut decided = never.clone();
    let open = (profile.allow.iter().map(|g| &g.calls))
        .chain(profile.allow_if.iter().map(|g| &g.calls))
        .chain(profile.refuse.iter().map(|g| &g.calls))
        .chain(profile.with_capability.iter().map(|g| &g.calls));
    for call in open.flat_map(|calls| names(calls)) {
        assert!(
            !never.contains(call),
            "{call} is for nobody, and for somebody"
        );
        decided.insert(call);
    }
    let undecided: Vec<_> = linux
        .keys()
        .filter(|call| !decided.contains(*call))
        .collect();
    assert!(undecided.is_empty(), "not decided: {undecided:?}");
    // Misspelt ones decide nothing. These few are names that the filter library has besides.
    let others = [
        "fadvise64_64",
        "fstatat64",
        "ipc",
        "recv",
        "send",
        "shmat",
        "socketcall",
    ];
    let unknown: Vec<_> = decided
        .iter()
        .filter(|call| !linux.contains_key(*call) && !others.contains(call))
        .collect();
    assert!(unknown.is_empty(), "no calls of Linux: {unknown:?}");
}

#[test]
fn calls_of_newer_kernels_are_allowed() {
    let calls = allowed(&[]);
    for call in [
        "cachestat",
        "fchmodat2",
        "file_getattr",
        "file_setattr",
        "futex_requeue",
        "futex_wait",
        "futex_waitv",
        "futex_wake",
        "getxattrat",
        "listmount",
        "listxattrat",
        "lsm_get_self_attr",
        "lsm_list_modules",
        "lsm_set_self_attr",
        "map_shadow_stack",
        "memfd_secret",
        "mseal",
        "process_mrelease",
        "removexattrat",
        "rseq_slice_yield",
        "setxattrat",
        "statmount",
        "uprobe",
        "uretprobe",
    ] {
        assert!(calls.contains(call), "{call}");
    }
    let admin = allowed(&[Capability::SysAdmin]);
    for call in ["listns", "open_tree_attr"] {
        assert!(!calls.contains(call) && admin.contains(call), "{call}");
    }
    let nice = "set_mempolicy_home_node";
    assert!(!calls.contains(nice) && allowed(&[Capability::SysNice]).contains(nice));
}

/// Whether the default profile lets `socket` through with this register as the family.
fn family_passes(register: u64) -> bool {
    let profile = runtime_default(&HashSet::new()).unwrap();
    let rules = profile.syscalls().iter().flatten();
    let mut rules = rules.filter(|rule| rule.names().iter().any(|name| name == "socket"));
    rules.any(|rule| {
        assert_eq!(rule.action(), LinuxSeccompAction::ScmpActAllow);
        let args = rule.args().as_ref().unwrap();
        args.iter().all(|arg| match arg.op() {
            LinuxSeccompOperator::ScmpCmpLt => register < arg.value(),
            LinuxSeccompOperator::ScmpCmpEq => register == arg.value(),
            other => panic!("{other:?}"),
        })
    })
}

#[test]
fn sockets_are_of_every_family_but_vsock_and_the_kernels_cryptography() {
    for family in 1..=45 {
        assert_eq!(
            family_passes(family),
            family != 38 && family != 40,
            "{family}"
        );
    }
    // The kernel takes the lower half of the register.
    for family in [1, 38, 40] {
        assert!(!family_passes(1 << 32 | family));
        assert!(!family_passes(u64::from(u32::MAX) << 32 | family));
    }
}

#[test]
fn filters_hold_for_every_way_into_the_kernel() {
    let ways = [Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32];
    let profiles = [runtime_default(&HashSet::new()), without_io_uring()];
    for profile in profiles {
        assert_eq!(profile.unwrap().architectures().as_deref(), Some(&ways[..]));
    }
}

#[test]
fn without_io_uring_is_that_alone() {
    let profile = without_io_uring().unwrap();
    assert_eq!(profile.default_action(), LinuxSeccompAction::ScmpActAllow);
    let rules = profile.syscalls().clone().unwrap();
    assert_eq!(rules.len(), 1);
    assert_eq!(rules[0].action(), LinuxSeccompAction::ScmpActErrno);
    assert_eq!(rules[0].errno_ret(), Some(1));
    let known = linux();
    let of_kernel: BTreeSet<_> = known
        .keys()
        .filter(|call| call.starts_with("io_uring"))
        .collect();
    let refused = rules[0].names();
    assert_eq!(refused.len(), of_kernel.len());
    assert!(refused.iter().all(|call| known.contains_key(call.as_str())));
}

#[test]
fn a_profile_of_the_node_is_passed_on_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.json");
    // With names nobody knows yet, fields of Docker's form, and every architecture of the OCI spec.
    let text = r#"{
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64",
            "SCMP_ARCH_LOONGARCH64", "SCMP_ARCH_RISCV64", "SCMP_ARCH_S390X"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [
            {"names": ["mseal", "a_call_of_tomorrow"], "action": "SCMP_ACT_ALLOW", "comment": "x",
             "includes": {}, "excludes": {}},
            {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [
                {"index": 0, "value": 18446744073709551615, "valueTwo": 0, "op": "SCMP_CMP_NE"}]}
        ]}"#;
    std::fs::write(&path, text).unwrap();
    let profile = read_localhost(&path).unwrap();
    let sent = serde_json::to_value(&profile).unwrap();
    let given: serde_json::Value = serde_json::from_str(text).unwrap();
    for field in ["defaultAction", "defaultErrnoRet", "architectures", "flags"] {
        assert_eq!(sent[field], given[field], "{field}");
    }
    for (number, field) in [(0, "names"), (1, "names"), (1, "args")] {
        assert_eq!(
            sent["syscalls"][number][field],
            given["syscalls"][number][field]
        );
    }
}
