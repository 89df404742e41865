//! From an OCI seccomp profile to the program the kernel runs. libseccomp compiles what it knows;
//! before its program stands a short one of our own, for two things it does not do: system calls
//! that are newer than the library, by number, and ENOSYS for those newer than the profile, so that
//! programs fall back on older calls instead of giving up (as runc does).
//!
//! Not here: loading it, which is the last thing before execve (`launcher::finish`).

use std::io::{Read, Seek};

use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};
use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};

/// What the kernel is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// Its instructions, struct sock_filter, eight bytes each.
    pub program: Vec<u64>,
    /// SECCOMP_FILTER_FLAG_*.
    pub flags: u32,
}

/// Why a profile cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// A feature that Bulkhead does not support.
    #[error("the seccomp profile has {0}, which Bulkhead does not support")]
    Unsupported(String),
    /// A value out of range.
    #[error("the seccomp profile: {0}")]
    Invalid(String),
    /// libseccomp refused it.
    #[error("the seccomp profile: {what}")]
    Library {
        /// Which part.
        what: String,
        /// Why.
        #[source]
        error: libseccomp::error::SeccompError,
    },
    /// The compiled program could not be taken over.
    #[error("reading the compiled seccomp profile")]
    Read(#[from] std::io::Error),
}

/// System calls that libseccomp 2.5.4 (Debian 12) does not know. Since Linux 5.1 a new one has the
/// same number on x86_64 and on i386 (asm/unistd_64.h, asm/unistd_32.h), but for uretprobe and
/// uprobe, which i386 does not have.
const NEWER: [(&str, u32); 22] = [
    ("set_mempolicy_home_node", 450),
    ("cachestat", 451),
    ("fchmodat2", 452),
    ("map_shadow_stack", 453),
    ("futex_wake", 454),
    ("futex_wait", 455),
    ("futex_requeue", 456),
    ("statmount", 457),
    ("listmount", 458),
    ("lsm_get_self_attr", 459),
    ("lsm_set_self_attr", 460),
    ("lsm_list_modules", 461),
    ("mseal", 462),
    ("setxattrat", 463),
    ("getxattrat", 464),
    ("listxattrat", 465),
    ("removexattrat", 466),
    ("open_tree_attr", 467),
    ("file_getattr", 468),
    ("file_setattr", 469),
    ("listns", 470),
    ("rseq_slice_yield", 471),
];
const NEWER_X86_64: [(&str, u32); 2] = [("uretprobe", 335), ("uprobe", 336)];

/// A number of x86_64 that is one of x32 (asm/unistd.h, __X32_SYSCALL_BIT).
const X32_BIT: u32 = 0x4000_0000;
/// linux/audit.h
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const AUDIT_ARCH_I386: u32 = 0x4000_0003;
/// linux/seccomp.h, struct seccomp_data.
const DATA_NR: u32 = 0;
const DATA_ARCH: u32 = 4;

/// Compiles a profile.
///
/// # Errors
/// For what cannot be carried out.
pub fn compile(profile: &LinuxSeccomp) -> Result<Filter, SeccompError> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let library = |what: &str| {
        let what = what.to_owned();
        move |error| SeccompError::Library { what, error }
    };
    let mut context = ScmpFilterContext::new(default).map_err(library("its default action"))?;
    // Set by this code instead.
    context
        .set_ctl_nnp(false)
        .map_err(library("no_new_privs"))?;
    let mut i386 = false;
    for arch in profile.architectures().iter().flatten() {
        let Some(arch) = architecture(*arch) else {
            // Profiles list all architectures; others are skipped.
            continue;
        };
        i386 |= arch == ScmpArch::X86;
        if !context
            .is_arch_present(arch)
            .map_err(library("its architectures"))?
        {
            context
                .add_arch(arch)
                .map_err(library("its architectures"))?;
        }
    }
    let mut newer: Vec<(Where, u32, ScmpAction)> = Vec::new();
    let mut last = [0; 2];
    for rule in profile.syscalls().iter().flatten() {
        let wanted = action(rule.action(), rule.errno_ret())?;
        for name in rule.names() {
            note_last(name, &mut last);
            if wanted == default {
                continue;
            }
            match ScmpSyscall::from_name(name) {
                Ok(call) => add(&mut context, wanted, call, name, rule)?,
                Err(_) => {
                    let rule = by_number(name, wanted, rule)?;
                    // The first word counts, and each has its place once: jumps are short.
                    let known = |number| newer.iter().any(|(_, known, _)| *known == number);
                    newer.extend(rule.filter(|(_, number, _)| !known(*number)));
                }
            }
        }
    }
    let mut program = prologue(default, &newer, last, i386);
    program.extend(exported(&context)?);
    if program.len() > libc::BPF_MAXINSNS.unsigned_abs() as usize {
        return Err(SeccompError::Invalid(format!(
            "it compiles to {} instructions, and the kernel takes {}",
            program.len(),
            libc::BPF_MAXINSNS
        )));
    }
    Ok(Filter {
        program,
        flags: flags(profile)?,
    })
}

/// A filter for one of the agent's own processes: these system calls of x86_64, and EPERM for all
/// others.
pub fn allow_only(calls: &[libc::c_long]) -> Filter {
    let eperm = libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs();
    let mut program = vec![
        load(DATA_ARCH),
        jump(libc::BPF_JEQ, AUDIT_ARCH_X86_64, (1, 0)),
        answer(eperm),
        load(DATA_NR),
    ];
    for number in calls.iter().filter_map(|call| u32::try_from(*call).ok()) {
        program.push(jump(libc::BPF_JEQ, number, (0, 1)));
        program.push(answer(libc::SECCOMP_RET_ALLOW));
    }
    program.push(answer(eperm));
    Filter { program, flags: 0 }
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, SeccompError> {
    let number = || {
        // EPERM unless the profile says otherwise, as in every runtime.
        let number = errno.unwrap_or(libc::EPERM.unsigned_abs());
        u16::try_from(number)
            .map_err(|_| SeccompError::Invalid(format!("errnoRet {number} is more than 65535")))
    };
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            ScmpAction::KillThread
        }
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(i32::from(number()?)),
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(number()?),
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActNotify => {
            return Err(SeccompError::Unsupported(
                "the action SCMP_ACT_NOTIFY (a supervisor outside of the container)".into(),
            ));
        }
    })
}

fn architecture(arch: Arch) -> Option<ScmpArch> {
    match arch {
        Arch::ScmpArchX86_64 => Some(ScmpArch::X8664),
        Arch::ScmpArchX86 => Some(ScmpArch::X86),
        Arch::ScmpArchX32 => Some(ScmpArch::X32),
        _ => None,
    }
}

/// The highest number the profile speaks of, on x86_64 and on i386.
fn note_last(name: &str, last: &mut [u32; 2]) {
    let known = |arch| {
        ScmpSyscall::from_name_by_arch(name, arch)
            .ok()
            .and_then(|call| u32::try_from(call.as_raw_syscall()).ok())
    };
    let listed = |list: &[(&str, u32)]| {
        list.iter()
            .find(|(known, _)| *known == name)
            .map(|(_, number)| *number)
    };
    let newer = listed(&NEWER);
    let numbers = [
        known(ScmpArch::X8664).or(newer).or(listed(&NEWER_X86_64)),
        known(ScmpArch::X86).or(newer),
    ];
    for (last, number) in last.iter_mut().zip(numbers) {
        *last = (*last).max(number.unwrap_or(0));
    }
}

/// A rule for a system call that libseccomp does not know; none for an unknown name.
fn by_number(
    name: &str,
    action: ScmpAction,
    rule: &LinuxSyscall,
) -> Result<Option<(Where, u32, ScmpAction)>, SeccompError> {
    let found = NEWER
        .iter()
        .map(|(known, number)| (known, number, Where::Both))
        .chain(
            NEWER_X86_64
                .iter()
                .map(|(known, number)| (known, number, Where::X86_64)),
        )
        .find(|(known, ..)| **known == name);
    let Some((_, number, on)) = found else {
        return Ok(None);
    };
    if rule.args().as_ref().is_some_and(|args| !args.is_empty()) {
        return Err(SeccompError::Unsupported(format!(
            "conditions on the arguments of {name}, a system call newer than its compiler"
        )));
    }
    Ok(Some((on, *number, action)))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    Both,
    X86_64,
}

fn add(
    context: &mut ScmpFilterContext,
    action: ScmpAction,
    call: ScmpSyscall,
    name: &str,
    rule: &LinuxSyscall,
) -> Result<(), SeccompError> {
    let failed = |error| SeccompError::Library {
        what: format!("its rule for {name}"),
        error,
    };
    let args = rule.args().as_deref().unwrap_or_default();
    if args.is_empty() {
        return context.add_rule(action, call).map(drop).map_err(failed);
    }
    let compared = args.iter().map(compare).collect::<Result<Vec<_>, _>>()?;
    let index = |arg: &LinuxSeccompArg| arg.index();
    let repeated = args.iter().enumerate().any(|(nth, arg)| {
        args.iter()
            .skip(nth + 1)
            .any(|other| index(other) == index(arg))
    });
    if repeated {
        // libseccomp takes one comparison per argument. runc has made a list of them mean "or", and
        // profiles rely on it.
        for one in compared {
            context
                .add_rule_conditional(action, call, &[one])
                .map_err(failed)?;
        }
        return Ok(());
    }
    context
        .add_rule_conditional(action, call, &compared)
        .map(drop)
        .map_err(failed)
}

fn compare(arg: &LinuxSeccompArg) -> Result<ScmpArgCompare, SeccompError> {
    let index = u32::try_from(arg.index())
        .ok()
        .filter(|index| *index < 6)
        .ok_or_else(|| {
            SeccompError::Invalid(format!(
                "argument {} of a system call (0 to 5)",
                arg.index()
            ))
        })?;
    let (operator, value) = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
        // OCI: value is the mask, and valueTwo what must be left of the argument.
        LinuxSeccompOperator::ScmpCmpMaskedEq => (
            ScmpCompareOp::MaskedEqual(arg.value()),
            arg.value_two().unwrap_or(0),
        ),
    };
    Ok(ScmpArgCompare::new(index, operator, value))
}

fn flags(profile: &LinuxSeccomp) -> Result<u32, SeccompError> {
    let mut flags: libc::c_ulong = 0;
    for flag in profile.flags().iter().flatten() {
        flags |= match flag {
            // There is only one thread.
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => {
                libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW
            }
            #[allow(unreachable_patterns)]
            other => return Err(SeccompError::Unsupported(format!("the flag {other:?}"))),
        };
    }
    u32::try_from(flags).map_err(|_| SeccompError::Invalid("its flags".into()))
}

fn exported(context: &ScmpFilterContext) -> Result<Vec<u64>, SeccompError> {
    let file =
        rustix::fs::memfd_create(c"filter", MemfdFlags::CLOEXEC).map_err(std::io::Error::from)?;
    context
        .export_bpf(&file)
        .map_err(|error| SeccompError::Library {
            what: "compiling it".into(),
            error,
        })?;
    let mut bytes = Vec::new();
    let mut file = std::fs::File::from(file);
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    let words = bytes
        .chunks_exact(8)
        .filter_map(|word| word.try_into().ok());
    Ok(words.map(u64::from_ne_bytes).collect())
}

fn instruction(code: u32, jump: (usize, usize), k: u32) -> u64 {
    // Jumps are checked by who makes them; code is one of linux/bpf_common.h.
    let byte = |value: usize| u8::try_from(value).unwrap_or(u8::MAX);
    let code = u16::try_from(code).unwrap_or(u16::MAX).to_ne_bytes();
    let k = k.to_ne_bytes();
    let [code0, code1, k0, k1, k2, k3] = [code[0], code[1], k[0], k[1], k[2], k[3]];
    u64::from_ne_bytes([code0, code1, byte(jump.0), byte(jump.1), k0, k1, k2, k3])
}

fn load(offset: u32) -> u64 {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, (0, 0), offset)
}

fn jump(test: u32, k: u32, to: (usize, usize)) -> u64 {
    instruction(libc::BPF_JMP | test | libc::BPF_K, to, k)
}

fn answer(action: u32) -> u64 {
    instruction(libc::BPF_RET | libc::BPF_K, (0, 0), action)
}

/// linux/seccomp.h, SECCOMP_RET_*.
fn kernels(action: ScmpAction) -> u32 {
    let data = |value: i32| u32::try_from(value & 0xffff).unwrap_or(0);
    match action {
        ScmpAction::KillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        ScmpAction::Trap => libc::SECCOMP_RET_TRAP,
        ScmpAction::Errno(number) => libc::SECCOMP_RET_ERRNO | data(number),
        ScmpAction::Trace(number) => libc::SECCOMP_RET_TRACE | u32::from(number),
        ScmpAction::Log => libc::SECCOMP_RET_LOG,
        ScmpAction::Allow => libc::SECCOMP_RET_ALLOW,
        // Notify was refused.
        ScmpAction::KillThread | ScmpAction::Notify => libc::SECCOMP_RET_KILL_THREAD,
        #[allow(unreachable_patterns)]
        _ => libc::SECCOMP_RET_KILL_PROCESS,
    }
}

/// What comes before libseccomp's program: a part for each architecture, which ends in an answer or
/// falls out at its end.
fn prologue(
    default: ScmpAction,
    newer: &[(Where, u32, ScmpAction)],
    last: [u32; 2],
    i386: bool,
) -> Vec<u64> {
    // A profile that allows by default also allows newer system calls.
    let unknown = matches!(
        default,
        ScmpAction::Errno(_) | ScmpAction::KillProcess | ScmpAction::KillThread | ScmpAction::Trap
    );
    let part = |arch: u32, on: &[Where], last: u32| {
        let rules: Vec<_> = newer
            .iter()
            .filter(|(place, ..)| on.contains(place))
            .collect();
        let mut body = Vec::new();
        if arch == AUDIT_ARCH_X86_64 {
            // x32 is libseccomp's: its first three instructions can be jumped over within a byte.
            let rest = rules.len() * 2 + if unknown { 2 } else { 0 };
            body.push(jump(libc::BPF_JGE, X32_BIT, (rest, 0)));
        }
        for (_, number, action) in &rules {
            body.push(jump(libc::BPF_JEQ, *number, (0, 1)));
            body.push(answer(kernels(*action)));
        }
        if unknown && last > 0 {
            body.push(jump(libc::BPF_JGT, last, (0, 1)));
            body.push(answer(
                libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs(),
            ));
        } else if unknown && arch == AUDIT_ARCH_X86_64 {
            // As long as it was said to be above: two instructions that do nothing.
            body.push(load(DATA_NR));
            body.push(load(DATA_NR));
        }
        let mut part = vec![
            load(DATA_ARCH),
            jump(libc::BPF_JEQ, arch, (0, body.len() + 1)),
            load(DATA_NR),
        ];
        part.append(&mut body);
        part
    };
    let mut program = part(AUDIT_ARCH_X86_64, &[Where::Both, Where::X86_64], last[0]);
    if i386 {
        program.extend(part(AUDIT_ARCH_I386, &[Where::Both], last[1]));
    }
    program
}

#[cfg(test)]
mod tests;
