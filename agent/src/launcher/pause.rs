//! The pause process: the first of the PID namespace that a pod's containers share, and of their user
//! namespace where the pod has one. It reaps, and both namespaces live as long as it does. Runs in a
//! worker.
//!
//! Containers see it, and one with CAP_SYS_PTRACE controls it: so it has an empty root, no
//! capabilities, no descriptors, and a seccomp filter that allows it to wait and nothing else.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::Pid;
use rustix::thread::UnshareFlags;

use super::capabilities::Sets;
use super::errno::errno_text;
use super::finish;
use super::fork::{self, Fork};
use super::message::{Failure, FailureKind, Reply, Response};
use super::root::detached;
use super::seccomp::{self, Filter};
use crate::poll::wait_readable;
use crate::process::kill_new;
use crate::userns::IdMap;

/// A few system calls.
const DEADLINE: Duration = Duration::from_secs(30);

fn failed(what: &str, error: impl std::fmt::Display) -> Failure {
    Failure::new(
        FailureKind::Internal,
        format!("{what} for the pod's namespaces: {error}"),
    )
}

/// Starts it.
///
/// # Errors
/// If the kernel refuses; nothing is left then.
pub fn run(map: Option<&IdMap>) -> Result<Reply, Failure> {
    // The user namespace first in effect: it then owns the PID namespace, whose /proc the
    // containers could not mount otherwise.
    let namespaces = match map {
        Some(_) => libc::CLONE_NEWUSER | libc::CLONE_NEWPID,
        None => libc::CLONE_NEWPID,
    };
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|error| failed("making a socket", error))?;
    // SAFETY: this runs in a worker, which is a fork of the single-threaded launcher and makes no
    // threads.
    match unsafe { fork::fork_into(namespaces) }.map_err(|error| failed("forking", error))? {
        Fork::Child => {
            drop(ours);
            hold(theirs, map.is_some())
        }
        Fork::Parent(pid) => {
            drop(theirs);
            match introduce(pid, map, &ours) {
                Ok(()) => Ok((
                    Response::Started {
                        pid: pid.as_raw_nonzero().get(),
                        user: None,
                        filter: None,
                    },
                    Vec::new(),
                )),
                Err(failure) => {
                    kill_new(pid.as_raw_nonzero().get());
                    Err(failure)
                }
            }
        }
    }
}

/// The part that only a process outside can do, then waits until the child is ready.
fn introduce(pid: Pid, map: Option<&IdMap>, socket: &OwnedFd) -> Result<(), Failure> {
    let proc = format!("/proc/{}", pid.as_raw_nonzero());
    let write = |file: &str, text: &str| {
        fs::write(format!("{proc}/{file}"), text)
            .map_err(|error| failed(&format!("writing {file}"), error))
    };
    write("oom_score_adj", "-998")?;
    if let Some(map) = map {
        write("uid_map", &map.uids.line())?;
        write("gid_map", &map.gids.line())?;
    }
    rustix::io::write(socket, b"g").map_err(|error| failed("releasing the process", error))?;
    wait_readable(socket.as_fd(), DEADLINE)
        .map_err(|error| failed("waiting for the process", error))?;
    let mut report = [0; 256];
    match rustix::io::read(socket, &mut report[..]) {
        Ok(1) => Ok(()),
        Ok(0) => Err(failed("making the process", "it ended before it reported")),
        Ok(length) => {
            let text = report.get(..length).unwrap_or_default();
            Err(failed("making the process", String::from_utf8_lossy(text)))
        }
        Err(error) => Err(failed("waiting for the process", error)),
    }
}

/// In the child.
fn hold(socket: OwnedFd, own_users: bool) -> ! {
    let _ = rustix::thread::set_name(c"bulkhead-pod");
    let _ = rustix::process::setsid();
    fork::reset_signals();
    fork::reap_children_automatically(true);
    if !matches!(rustix::io::read(&socket, &mut [0; 1][..]), Ok(1)) {
        fork::exit(1);
    }
    // Also sets no_new_privs, without which the filter cannot be loaded.
    let failed = match withdraw(own_users) {
        Ok(()) => rustix::io::write(&socket, b"r").is_err(),
        Err((step, error)) => {
            let _ = rustix::io::write(&socket, format!("{step}: {}", errno_text(error)).as_bytes());
            true
        }
    };
    if failed {
        fork::exit(1);
    }
    // SAFETY: from here on this process uses no descriptor, and it never returns, so that no owner of
    // one is dropped.
    unsafe {
        libc::close_range(0, u32::MAX, 0);
    }
    if finish::load(&only_waiting()).is_err() {
        fork::exit(1);
    }
    loop {
        // SAFETY: pause(2) takes no argument; every signal has its default disposition, which runs no
        // code.
        unsafe {
            libc::pause();
        }
    }
}

/// Gives up everything that a container could use.
fn withdraw(own_users: bool) -> Result<(), (&'static str, Errno)> {
    let step = |what| move |error| (what, error);
    if own_users {
        fork::become_root().map_err(step("becoming root in it"))?;
    }
    // SAFETY: only CLONE_FILES could make descriptors of this process invalid; NEWNS does not touch
    // them, and the process has no other thread.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }
        .map_err(step("making a mount namespace"))?;
    let alone = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", alone).map_err(step("separating its mounts"))?;
    // Any directory serves as the mount point; it goes with the old root.
    let empty = detached::empty().map_err(step("making an empty root"))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let place = rustix::fs::open("/proc", flags, Mode::empty()).map_err(step("opening /proc"))?;
    detached::attach(&empty, &place).map_err(step("attaching the empty root"))?;
    rustix::process::fchdir(&empty).map_err(step("entering the empty root"))?;
    rustix::process::pivot_root(".", ".").map_err(step("pivot_root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(step("unmounting the old root"))?;
    let none = Sets::of(None);
    none.limit().map_err(step("limiting the capabilities"))?;
    rustix::thread::set_no_new_privs(true).map_err(step("setting no_new_privs"))?;
    none.take(false)
        .map_err(step("dropping the capabilities"))?;
    fork::close_to_others().map_err(step("closing it to others"))
}

/// Allows what a loop around pause(2) needs and nothing else.
fn only_waiting() -> Filter {
    let calls = [
        libc::SYS_pause,
        libc::SYS_restart_syscall,
        libc::SYS_rt_sigreturn,
        libc::SYS_exit_group,
    ];
    seccomp::allow_only(&calls)
}
