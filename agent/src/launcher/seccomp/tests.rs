use proptest::prelude::*;

use super::*;

/// The kernel's machine, as far as filters use it (net/core/filter.c).
fn run(program: &[u64], arch: u32, nr: u32, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(nr.to_ne_bytes());
    data.extend(arch.to_ne_bytes());
    data.extend(0u64.to_ne_bytes());
    for arg in args {
        data.extend(arg.to_ne_bytes());
    }
    let (mut at, mut a) = (0, 0u32);
    loop {
        let bytes = program[at].to_ne_bytes();
        let code = u32::from(u16::from_ne_bytes([bytes[0], bytes[1]]));
        let k = u32::from_ne_bytes(bytes[4..].try_into().unwrap());
        let go = |yes: bool| usize::from(if yes { bytes[2] } else { bytes[3] });
        at += 1;
        match code {
            0x20 => a = u32::from_ne_bytes(data[k as usize..][..4].try_into().unwrap()),
            0x05 => at += k as usize,
            0x15 => at += go(a == k),
            0x25 => at += go(a > k),
            0x35 => at += go(a >= k),
            0x45 => at += go(a & k != 0),
            0x54 => a &= k,
            0x06 => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const EPERM: u32 = libc::SECCOMP_RET_ERRNO | 1;
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | 38;

fn filter(json: &str) -> Filter {
    compile(&serde_json::from_str(json).unwrap()).unwrap()
}

fn answer_to(filter: &Filter, nr: u32) -> u32 {
    run(&filter.program, AUDIT_ARCH_X86_64, nr, [0; 6])
}

const PROFILE: &str = r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64",
    "SCMP_ARCH_X86","SCMP_ARCH_X32","SCMP_ARCH_AARCH64"],"syscalls":[
    {"names":["read","execve","mseal","uretprobe","statmount","no_such_call"],"action":"SCMP_ACT_ALLOW"},
    {"names":["fchmodat2"],"action":"SCMP_ACT_ERRNO","errnoRet":95},
    {"names":["socket"],"action":"SCMP_ACT_ALLOW",
     "args":[{"index":0,"value":40,"op":"SCMP_CMP_NE"}]},
    {"names":["clone"],"action":"SCMP_ACT_ALLOW",
     "args":[{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]},
    {"names":["personality"],"action":"SCMP_ACT_ALLOW","args":[
     {"index":0,"value":0,"op":"SCMP_CMP_EQ"},{"index":0,"value":8,"op":"SCMP_CMP_EQ"}]}]}"#;

#[test]
fn named_calls_are_allowed_refused_ones_are_eperm_and_unknown_ones_enosys() {
    let filter = filter(PROFILE);
    let number = |call: libc::c_long| u32::try_from(call).unwrap();
    for allowed in [
        number(libc::SYS_read),
        number(libc::SYS_execve),
        335,
        457,
        462,
    ] {
        assert_eq!(answer_to(&filter, allowed), ALLOW, "{allowed}");
    }
    for refused in [number(libc::SYS_write), number(libc::SYS_mount), 336, 461] {
        assert_eq!(answer_to(&filter, refused), EPERM, "{refused}");
    }
    assert_eq!(answer_to(&filter, 452), libc::SECCOMP_RET_ERRNO | 95);
    for unknown in [463, 470, 600, X32_BIT - 1] {
        assert_eq!(answer_to(&filter, unknown), ENOSYS, "{unknown}");
    }
}

#[test]
fn the_other_architectures_of_the_processor_are_filtered_too() {
    let filter = filter(PROFILE);
    let i386 = |nr| run(&filter.program, AUDIT_ARCH_I386, nr, [0; 6]);
    // read, mseal, and in order: mount, and what is newer than the profile.
    assert_eq!((i386(3), i386(462)), (ALLOW, ALLOW));
    assert_eq!((i386(21), i386(463)), (EPERM, ENOSYS));
    // Only x86_64 has it.
    assert_eq!(i386(335), EPERM);
    assert_eq!(answer_to(&filter, X32_BIT), ALLOW);
    assert_ne!(answer_to(&filter, X32_BIT | 462), ALLOW);
    let none = run(&filter.program, 0xc000_00b7, 63, [0; 6]);
    assert_eq!(none, libc::SECCOMP_RET_KILL_THREAD);
}

#[test]
fn conditions_on_arguments_hold() {
    let filter = filter(PROFILE);
    let ask = |call: libc::c_long, first| {
        let nr = u32::try_from(call).unwrap();
        run(
            &filter.program,
            AUDIT_ARCH_X86_64,
            nr,
            [first, 0, 0, 0, 0, 0],
        )
    };
    assert_eq!(ask(libc::SYS_socket, 2), ALLOW);
    assert_eq!(ask(libc::SYS_socket, 40), EPERM);
    assert_eq!(ask(libc::SYS_clone, 17), ALLOW);
    assert_eq!(ask(libc::SYS_clone, 0x1000_0011), EPERM);
    assert_eq!(ask(libc::SYS_personality, 8), ALLOW);
    assert_eq!(ask(libc::SYS_personality, 9), EPERM);
}

#[test]
fn a_profile_that_allows_by_default_stays_so() {
    let filter = filter(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
           {"names":["mseal","mount"],"action":"SCMP_ACT_ERRNO"}]}"#,
    );
    assert_eq!(answer_to(&filter, 600), ALLOW);
    assert_eq!(answer_to(&filter, 462), EPERM);
    assert_eq!(
        answer_to(&filter, u32::try_from(libc::SYS_mount).unwrap()),
        EPERM
    );
}

#[test]
fn a_profile_without_rules_is_accepted() {
    let filter = filter(r#"{"defaultAction":"SCMP_ACT_ERRNO"}"#);
    assert_eq!(answer_to(&filter, 0), EPERM);
    // An architecture that is not named.
    assert_eq!(answer_to(&filter, X32_BIT), libc::SECCOMP_RET_KILL_THREAD);
}

#[test]
fn an_allow_list_allows_nothing_else() {
    let filter = allow_only(&[libc::SYS_pause, libc::SYS_exit_group]);
    for (call, answer) in [
        (libc::SYS_pause, ALLOW),
        (libc::SYS_read, EPERM),
        (libc::SYS_exit_group, ALLOW),
    ] {
        assert_eq!(answer_to(&filter, u32::try_from(call).unwrap()), answer);
    }
    assert_eq!(run(&filter.program, AUDIT_ARCH_I386, 29, [0; 6]), EPERM);
}

#[test]
fn unsupported_profiles_are_refused() {
    for json in [
        r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#,
        r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":70000}"#,
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["mseal"],
            "action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],
            "action":"SCMP_ACT_ALLOW","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
    ] {
        assert!(
            compile(&serde_json::from_str(json).unwrap()).is_err(),
            "{json}"
        );
    }
}

proptest! {
    #[test]
    fn every_path_through_a_program_returns(
        names in prop::collection::vec(
            prop_oneof![Just("read"), Just("mseal"), Just("listns"), Just("uprobe"), Just("open")], 0..5),
        allow in any::<bool>(), deny in any::<bool>(),
        arch in prop_oneof![Just(AUDIT_ARCH_X86_64), Just(AUDIT_ARCH_I386), any::<u32>()],
        nr in any::<u32>(),
    ) {
        let word = |allow| if allow { "SCMP_ACT_ALLOW" } else { "SCMP_ACT_ERRNO" };
        let json = serde_json::json!({
            "defaultAction": word(deny),
            "architectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "syscalls": [{ "names": names, "action": word(allow) }],
        });
        let filter = compile(&serde_json::from_value(json).unwrap()).unwrap();
        run(&filter.program, arch, nr, [0; 6]);
    }
}
