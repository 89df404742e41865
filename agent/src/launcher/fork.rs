//! fork(2) and what goes with it, for the single-threaded launcher only.

use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Pid};

/// The side of a fork that returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The caller, with the child's pid.
    Parent(Pid),
    /// The new process.
    Child,
}

/// Forks.
///
/// # Errors
/// EAGAIN at the limit of processes (`pids.max` of a container's cgroup counts), ENOMEM.
///
/// # Safety
/// The process must have one thread only: in the child of a process with more, locks held by
/// others (malloc's among them) stay locked for ever.
pub unsafe fn fork() -> rustix::io::Result<Fork> {
    // SAFETY: by this function's contract the process has one thread, so no lock is held in the child
    // by a thread that does not exist there.
    match unsafe { libc::fork() } {
        -1 => Err(
            rustix::io::Errno::from_io_error(&std::io::Error::last_os_error())
                .unwrap_or(rustix::io::Errno::AGAIN),
        ),
        0 => Ok(Fork::Child),
        pid => Pid::from_raw(pid)
            .map(Fork::Parent)
            .ok_or(rustix::io::Errno::AGAIN),
    }
}

/// Forks into namespaces of the child's own.
///
/// # Errors
/// As [`fork`], and EPERM or ENOSPC for the namespaces.
///
/// # Safety
/// As [`fork`].
pub unsafe fn fork_into(namespaces: libc::c_int) -> rustix::io::Result<Fork> {
    let flags = libc::c_long::from(namespaces | libc::SIGCHLD);
    // SAFETY: without CLONE_VM and without a stack of its own this is fork(2) into namespaces. By this
    // function's contract the process has one thread, so no lock is held in the child by a thread that
    // does not exist there; and the child uses nothing that the C library's fork would renew (the
    // cached thread id, at-fork handlers).
    match unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } {
        -1 => Err(
            rustix::io::Errno::from_io_error(&std::io::Error::last_os_error())
                .unwrap_or(rustix::io::Errno::AGAIN),
        ),
        0 => Ok(Fork::Child),
        pid => i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .map(Fork::Parent)
            .ok_or(rustix::io::Errno::AGAIN),
    }
}

/// Becomes root of the user namespace that was entered.
///
/// # Errors
/// If the kernel refuses.
pub fn become_root() -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    close_to_others()
}

/// Makes this process one that processes of containers may neither look at nor stop (PR_SET_DUMPABLE,
/// CVE-2016-9962). Due again after each change of user, which makes a process what fs.suid_dumpable
/// says (proc_sys_fs(5)).
///
/// # Errors
/// If the kernel refuses.
pub fn close_to_others() -> Result<(), Errno> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

/// Whether dead children become zombies (the default) or vanish by themselves.
pub fn reap_children_automatically(automatically: bool) {
    let disposition = if automatically {
        libc::SIG_IGN
    } else {
        libc::SIG_DFL
    };
    // SAFETY: SIG_IGN and SIG_DFL are valid dispositions that run no code in this process.
    unsafe {
        libc::signal(libc::SIGCHLD, disposition);
    }
}

/// Gives every signal its default disposition and unblocks all: a payload must not inherit what
/// the agent ignores.
pub fn reset_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: the default disposition runs no code; numbers that cannot be set answer EINVAL.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
    // SAFETY: an all-zero sigset_t is the empty set on Linux, and the pointers are valid.
    unsafe {
        let empty = std::mem::zeroed::<libc::sigset_t>();
        libc::sigprocmask(libc::SIG_SETMASK, &raw const empty, std::ptr::null_mut());
    }
}

/// Ends this process without any system call, by a signal.
pub fn die() -> ! {
    // SAFETY: UD2 always raises an invalid-opcode exception (Intel SDM), whose default disposition ends
    // the process; so the block never returns, as `noreturn` promises.
    unsafe { std::arch::asm!("ud2", options(noreturn, nostack)) }
}

/// Ends this process at once, running no destructors and no exit handlers of its parent's.
pub fn exit(code: i32) -> ! {
    // SAFETY: _exit(2) takes a number and does not return; no memory is touched.
    unsafe { libc::_exit(code) }
}
