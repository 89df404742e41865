//! Small hand-written BPF programs on a container's cgroup: their instructions, and loading and
//! attaching them with bpf(2). What they decide is in `device_filter` and `socket_filter`.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The kernel refused a program.
#[derive(Debug, thiserror::Error)]
#[error("{step} of the {filter} of {} (the kernel needs CGROUP_BPF)", path.display())]
pub struct BpfError {
    /// Which step.
    step: &'static str,
    /// Of which program.
    filter: &'static str,
    /// For which cgroup.
    path: PathBuf,
    /// Why.
    #[source]
    error: io::Error,
}

/// What a program is asked about, and where in the kernel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    /// Its name, for messages.
    pub filter: &'static str,
    program: u32,
    attach: u32,
}

// uapi/linux/bpf.h
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
/// Beside those of the cgroups below, none of which can say yes for it.
const BPF_F_ALLOW_MULTI: u32 = 2;

/// BPF_PROG_TYPE_CGROUP_DEVICE at BPF_CGROUP_DEVICE: making and opening device nodes.
pub(super) const DEVICE: Kind = Kind {
    filter: "device filter",
    program: 15,
    attach: 6,
};
/// BPF_PROG_TYPE_CGROUP_SOCK at BPF_CGROUP_INET_SOCK_CREATE: making sockets.
pub(super) const SOCKET: Kind = Kind {
    filter: "socket filter",
    program: 9,
    attach: 2,
};

/// One instruction (struct bpf_insn).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Instruction {
    pub code: u8,
    pub registers: u8,
    pub offset: i16,
    pub immediate: i32,
}

pub(super) const fn instruction(
    code: u8,
    to: u8,
    from: u8,
    offset: i16,
    immediate: i32,
) -> Instruction {
    Instruction {
        code,
        registers: (from << 4) | to,
        offset,
        immediate,
    }
}

pub(super) const LOAD_WORD: u8 = 0x61;
pub(super) const MOVE: u8 = 0xbf;
pub(super) const SET: u8 = 0xb7;
pub(super) const AND: u8 = 0x57;
pub(super) const SHIFT_RIGHT: u8 = 0x77;
pub(super) const JUMP_EQUAL: u8 = 0x15;
pub(super) const JUMP_NOT_EQUAL: u8 = 0x55;
pub(super) const EXIT: u8 = 0x95;

/// The register of a program's answer: 0 refuses (EPERM), 1 allows.
pub(super) const RESULT: u8 = 0;
/// The register that points to what a program is asked about.
pub(super) const CONTEXT: u8 = 1;

#[repr(C)]
struct LoadAttributes {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
}

#[repr(C)]
struct AttachAttributes {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// bpf(2).
///
/// # Safety
/// `T` must be laid out as the kernel's attributes of the command, and addresses in it must be valid
/// for what the command reads and writes there.
unsafe fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<i32> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes at the pointer, which is a valid T; addresses in
    // it are valid by this function's contract.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            std::mem::size_of::<T>(),
        )
    };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(answer).map_err(io::Error::other)
}

/// Puts a program on a container's cgroup, before its first process is in it. The cgroup keeps it
/// from here on, and drops it at its own end.
///
/// # Errors
/// If the kernel refuses.
pub(super) fn attach(kind: Kind, cgroup: &Path, code: &[Instruction]) -> Result<(), BpfError> {
    let failed = |step| {
        let (filter, path) = (kind.filter, cgroup.to_owned());
        move |error| BpfError {
            step,
            filter,
            path,
            error,
        }
    };
    let directory = File::open(cgroup).map_err(failed("opening the cgroup"))?;
    // A filter needs no GPL-only helper.
    let license = c"Apache-2.0";
    let load = LoadAttributes {
        kind: kind.program,
        instructions: u32::try_from(code.len()).unwrap_or(u32::MAX),
        code: code.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: [0; 16],
        interface: 0,
        expected_attach_type: kind.attach,
    };
    // SAFETY: the attributes are laid out as those of BPF_PROG_LOAD; `code` has as many instructions
    // as they say, the license is a C string, both live over the call, and there is no log buffer.
    let program = unsafe { bpf(BPF_PROG_LOAD, &load) }.map_err(failed("loading"))?;
    // SAFETY: BPF_PROG_LOAD has just returned this new descriptor, which nothing else owns.
    let program = unsafe { OwnedFd::from_raw_fd(program) };
    let attach = AttachAttributes {
        target: directory.as_raw_fd().unsigned_abs(),
        program: program.as_raw_fd().unsigned_abs(),
        kind: kind.attach,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: the attributes are laid out as those of BPF_PROG_ATTACH, and have no addresses.
    unsafe { bpf(BPF_PROG_ATTACH, &attach) }
        .map(drop)
        .map_err(failed("attaching"))
}

#[cfg(test)]
pub(super) mod machine {
    use super::*;

    /// What the kernel would do with a program that is asked about these words.
    pub fn run(code: &[Instruction], context: &[i32]) -> bool {
        let mut r = [0i64; 8];
        let mut at = 0;
        loop {
            let step = code[at];
            at += 1;
            let to = usize::from(step.registers & 15);
            let from = usize::from(step.registers >> 4);
            let jump = usize::try_from(step.offset).unwrap();
            let immediate = i64::from(step.immediate);
            match step.code {
                LOAD_WORD => r[to] = i64::from(context[jump / 4]),
                MOVE => r[to] = r[from],
                SET => r[to] = immediate,
                AND => r[to] &= immediate,
                SHIFT_RIGHT => r[to] >>= immediate,
                JUMP_EQUAL if r[to] == immediate => at += jump,
                JUMP_NOT_EQUAL if r[to] != immediate => at += jump,
                JUMP_EQUAL | JUMP_NOT_EQUAL => {}
                EXIT => return r[0] != 0,
                other => panic!("instruction {other:#x}"),
            }
        }
    }
}
