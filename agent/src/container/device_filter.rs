//! Which devices a container may make, read and write: in cgroup v2 a small BPF program on the
//! cgroup. The rules are OCI's `linux.resources.devices` and, after them, the devices every
//! container has (OCI runtime-spec, "Default Devices"). The program is a list of comparisons.

use std::path::Path;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, LinuxResources};

use super::bpf::{
    self, AND, BpfError, CONTEXT, EXIT, Instruction, JUMP_EQUAL, JUMP_NOT_EQUAL, LOAD_WORD, MOVE,
    RESULT, SET, SHIFT_RIGHT, instruction,
};

/// Why the filter is not there.
#[derive(Debug, thiserror::Error)]
pub enum DeviceFilterError {
    /// A malformed rule.
    #[error("device rule with access {0:?}: access is letters of r, w and m")]
    BadAccess(String),
    /// A device number beyond what the kernel has.
    #[error("device rule with number {0}: device numbers are 0 to 1048575")]
    BadNumber(i64),
    /// More rules than a program can hold.
    #[error("{0} device rules; at most {MAX_RULES} fit")]
    TooMany(usize),
    /// The kernel refused.
    #[error(transparent)]
    Bpf(#[from] BpfError),
}

/// A rule takes at most 7 instructions; the kernel allows 4096 without privileges, more with.
const MAX_RULES: usize = 512;

// uapi/linux/bpf.h
const TYPE_BLOCK: i32 = 1;
const TYPE_CHAR: i32 = 2;
const ACCESS_MKNOD: i32 = 1;
const ACCESS_READ: i32 = 2;
const ACCESS_WRITE: i32 = 4;
const ACCESS_ALL: i32 = 7;

/// One rule in the kernel's terms; `None` matches anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<i32>,
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
}

const fn allowed(major: i32, minor: Option<i32>) -> Rule {
    Rule {
        allow: true,
        kind: Some(TYPE_CHAR),
        major: Some(major),
        minor,
        access: ACCESS_ALL,
    }
}

/// null, zero, full, random, urandom, tty, ptmx, terminals; and making any node, which
/// without the right to open it is harmless (and package managers do it).
const DEFAULTS: [Rule; 10] = [
    Rule {
        allow: true,
        kind: Some(TYPE_CHAR),
        major: None,
        minor: None,
        access: ACCESS_MKNOD,
    },
    Rule {
        allow: true,
        kind: Some(TYPE_BLOCK),
        major: None,
        minor: None,
        access: ACCESS_MKNOD,
    },
    allowed(1, Some(3)),
    allowed(1, Some(5)),
    allowed(1, Some(7)),
    allowed(1, Some(8)),
    allowed(1, Some(9)),
    allowed(5, Some(0)),
    allowed(5, Some(2)),
    allowed(136, None),
];

fn number(value: Option<i64>) -> Result<Option<i32>, DeviceFilterError> {
    match value {
        // OCI: absent or negative is any.
        None | Some(i64::MIN..=-1) => Ok(None),
        Some(value @ 0..=0xf_ffff) => i32::try_from(value)
            .map(Some)
            .map_err(|_| DeviceFilterError::BadNumber(value)),
        Some(value) => Err(DeviceFilterError::BadNumber(value)),
    }
}

fn rule(device: &LinuxDeviceCgroup) -> Result<Rule, DeviceFilterError> {
    let kind = match device.typ() {
        None | Some(LinuxDeviceType::A) => None,
        Some(LinuxDeviceType::B) => Some(TYPE_BLOCK),
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(TYPE_CHAR),
        Some(LinuxDeviceType::P) => return Err(DeviceFilterError::BadAccess("p".to_owned())),
    };
    let mut access = 0;
    let text = device.access().as_deref().unwrap_or("rwm");
    for letter in text.chars() {
        access |= match letter {
            'r' => ACCESS_READ,
            'w' => ACCESS_WRITE,
            'm' => ACCESS_MKNOD,
            _ => return Err(DeviceFilterError::BadAccess(text.to_owned())),
        };
    }
    Ok(Rule {
        allow: device.allow(),
        kind,
        major: number(device.major())?,
        minor: number(device.minor())?,
        access: if access == 0 { ACCESS_ALL } else { access },
    })
}

/// All rules in OCI's order: the last that matches decides.
fn rules(resources: &LinuxResources) -> Result<Vec<Rule>, DeviceFilterError> {
    let mut rules = Vec::new();
    for device in resources.devices().iter().flatten() {
        rules.push(rule(device)?);
    }
    if rules.len() > MAX_RULES {
        return Err(DeviceFilterError::TooMany(rules.len()));
    }
    rules.extend(DEFAULTS);
    Ok(rules)
}

// Registers: beside the result and the context the type, access, major, minor, and scratch.
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

/// The program: from the last rule to the first, the first that matches answers; none is "no".
fn program(rules: &[Rule]) -> Vec<Instruction> {
    // struct bpf_cgroup_dev_ctx: access << 16 | type, major, minor.
    let mut code = vec![
        instruction(LOAD_WORD, KIND, CONTEXT, 0, 0),
        instruction(MOVE, ACCESS, KIND, 0, 0),
        instruction(AND, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let mut body = Vec::new();
        // (opcode, register, value): leaves the rule when the comparison holds.
        let fields = [(KIND, rule.kind), (MAJOR, rule.major), (MINOR, rule.minor)];
        let tests = fields
            .into_iter()
            .filter_map(|(register, value)| Some((register, value?)));
        for (register, value) in tests {
            body.push(instruction(JUMP_NOT_EQUAL, register, 0, 0, value));
        }
        if rule.access != ACCESS_ALL {
            body.push(instruction(MOVE, SCRATCH, ACCESS, 0, 0));
            // A permission matches when it covers all that is wanted, a refusal when it covers any.
            let (mask, leave) = if rule.allow {
                (!rule.access & ACCESS_ALL, JUMP_NOT_EQUAL)
            } else {
                (rule.access, JUMP_EQUAL)
            };
            body.push(instruction(AND, SCRATCH, 0, 0, mask));
            body.push(instruction(leave, SCRATCH, 0, 0, 0));
        }
        body.push(instruction(SET, RESULT, 0, 0, rule.allow.into()));
        body.push(instruction(EXIT, 0, 0, 0, 0));
        // The verifier refuses instructions that are never reached, such as what would follow a
        // rule that matches everything.
        let last = body.len() == 2;
        let length = body.len();
        for (at, step) in body.iter_mut().enumerate() {
            if matches!(step.code, JUMP_EQUAL | JUMP_NOT_EQUAL) {
                // A body has at most 8 instructions.
                step.offset = i16::try_from(length - at - 1).unwrap_or(i16::MAX);
            }
        }
        code.extend(body);
        if last {
            return code;
        }
    }
    code.push(instruction(SET, RESULT, 0, 0, 0));
    code.push(instruction(EXIT, 0, 0, 0, 0));
    code
}

/// Puts the filter on a container's cgroup, before its first process is in it.
///
/// # Errors
/// For bad rules, or when the kernel refuses.
pub fn attach(cgroup: &Path, resources: &LinuxResources) -> Result<(), DeviceFilterError> {
    let code = program(&rules(resources)?);
    Ok(bpf::attach(bpf::DEVICE, cgroup, &code)?)
}

/// Whether a container may open every device there is: it is privileged, by that or by what it can
/// make of it.
pub(super) fn allows_everything(resources: &LinuxResources) -> bool {
    let rules = resources.devices().iter().flatten().map(rule);
    let mut everything = false;
    for rule in rules {
        match rule {
            Ok(rule) if rule.allow => {
                let any = rule.kind.is_none() && rule.major.is_none() && rule.minor.is_none();
                everything |= any && rule.access == ACCESS_ALL;
            }
            Ok(_) | Err(_) => everything = false,
        }
    }
    everything
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would do with the program.
    fn run(code: &[Instruction], kind: i32, access: i32, major: i32, minor: i32) -> bool {
        bpf::machine::run(code, &[(access << 16) | kind, major, minor])
    }

    fn code(json: &str) -> Vec<Instruction> {
        program(&rules(&serde_json::from_str(json).unwrap()).unwrap())
    }

    #[test]
    fn without_rules_only_the_default_devices_open() {
        let code = code("{}");
        assert!(run(&code, TYPE_CHAR, ACCESS_READ | ACCESS_WRITE, 1, 3));
        assert!(run(&code, TYPE_CHAR, ACCESS_READ, 136, 7));
        assert!(run(&code, TYPE_BLOCK, ACCESS_MKNOD, 254, 0));
        assert!(!run(&code, TYPE_BLOCK, ACCESS_READ, 254, 0));
        assert!(!run(&code, TYPE_BLOCK, ACCESS_MKNOD | ACCESS_READ, 254, 0));
        assert!(!run(&code, TYPE_CHAR, ACCESS_READ, 1, 1));
    }

    #[test]
    fn the_last_rule_that_matches_decides() {
        let code = code(
            r#"{"devices":[{"allow":false,"access":"rwm"},
                {"allow":true,"type":"b","major":8,"access":"rw"},
                {"allow":false,"type":"b","major":8,"minor":1,"access":"w"}]}"#,
        );
        assert!(run(&code, TYPE_BLOCK, ACCESS_WRITE, 8, 0));
        assert!(run(&code, TYPE_BLOCK, ACCESS_READ, 8, 1));
        assert!(!run(&code, TYPE_BLOCK, ACCESS_READ | ACCESS_WRITE, 8, 1));
        assert!(!run(&code, TYPE_CHAR, ACCESS_READ, 8, 0));
    }

    #[test]
    fn a_privileged_container_may_open_anything() {
        let code = code(r#"{"devices":[{"allow":true,"access":"rwm"}]}"#);
        assert!(run(&code, TYPE_BLOCK, ACCESS_ALL, 253, 16));
    }

    #[test]
    fn vsock_and_other_misc_devices_are_refused() {
        // 10 is the major number of misc devices; the minor one of /dev/vsock is given at boot.
        let code = code(r#"{"devices":[{"allow":false,"access":"rwm"}]}"#);
        for minor in [0, 59, 123, 127, 241, 255, 256, 1048575] {
            for access in [ACCESS_READ, ACCESS_WRITE, ACCESS_READ | ACCESS_WRITE] {
                assert!(!run(&code, TYPE_CHAR, access, 10, minor), "10:{minor}");
            }
        }
    }

    #[test]
    fn a_rule_for_all_devices_allows_everything_unless_a_later_one_denies() {
        for (devices, everything) in [
            (r#"{}"#, false),
            (r#"{"devices":[{"allow":false,"access":"rwm"}]}"#, false),
            (r#"{"devices":[{"allow":true,"access":"rwm"}]}"#, true),
            (r#"{"devices":[{"allow":true}]}"#, true),
            (r#"{"devices":[{"allow":true,"access":"rw"}]}"#, false),
            (r#"{"devices":[{"allow":true,"type":"c"}]}"#, false),
            (r#"{"devices":[{"allow":true,"major":10}]}"#, false),
            (
                r#"{"devices":[{"allow":true},{"allow":false,"type":"b","major":8}]}"#,
                false,
            ),
            (
                r#"{"devices":[{"allow":true},{"allow":true,"type":"b","major":8,"access":"r"}]}"#,
                true,
            ),
        ] {
            let resources = serde_json::from_str(devices).unwrap();
            assert_eq!(allows_everything(&resources), everything, "{devices}");
        }
    }

    #[test]
    fn bad_rules_are_refused() {
        for rule in [
            r#"{"allow":true,"access":"x"}"#,
            r#"{"allow":true,"type":"c","major":99999999,"access":"r"}"#,
        ] {
            let json = format!(r#"{{"devices":[{rule}]}}"#);
            assert!(
                rules(&serde_json::from_str(&json).unwrap()).is_err(),
                "{rule}"
            );
        }
    }
}
