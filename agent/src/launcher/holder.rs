//! The first process of the PID namespace a pod's containers share, and of their user namespace,
//! where the pod has one: it reaps, and its life keeps both. Runs in a worker.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, Signal};

use super::fork::{self, Fork};
use super::message::{Failure, FailureKind};
use super::server::Started;
use super::terminal;
use crate::userns::IdMap;

/// A few system calls.
const DEADLINE: Duration = Duration::from_secs(30);

fn failed(what: &str, error: impl std::fmt::Display) -> Failure {
    Failure::new(
        FailureKind::Internal,
        format!("{what} for the pod's namespaces failed: {error}"),
    )
}

/// Starts it.
///
/// # Errors
/// When the kernel refuses; nothing is left then.
pub fn run(map: Option<&IdMap>) -> Result<Started, Failure> {
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
    // SAFETY: a worker has one thread.
    match unsafe { fork::fork_into(namespaces) }.map_err(|error| failed("forking", error))? {
        Fork::Child => {
            drop(ours);
            hold(theirs, map.is_some())
        }
        Fork::Parent(pid) => {
            drop(theirs);
            match introduce(pid, map, &ours) {
                Ok(()) => Ok((pid, Vec::new())),
                Err(failure) => {
                    let _ = rustix::process::kill_process(pid, Signal::KILL);
                    Err(failure)
                }
            }
        }
    }
}

/// What only a process outside can do, and the wait until the child is what it shall be.
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
    terminal::wait_readable(socket.as_fd(), DEADLINE)
        .map_err(|error| failed("waiting for the process", error))?;
    match rustix::io::read(socket, &mut [0; 1][..]) {
        Ok(1) => Ok(()),
        Ok(_) => Err(failed("becoming root in it", "the process died")),
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
    if own_users && become_root().is_err() {
        fork::exit(1);
    }
    let _ = rustix::io::write(&socket, b"r");
    // SAFETY: this process never uses a descriptor again; the socket's owner never drops it.
    unsafe {
        libc::close_range(0, u32::MAX, 0);
    }
    loop {
        // SAFETY: waits for a signal; none has a handler.
        unsafe {
            libc::pause();
        }
    }
}

/// Root of the namespace, with the namespaces open to who joins them: the change of user would
/// have hidden them otherwise (PR_SET_DUMPABLE, proc(5)).
pub(super) fn become_root() -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable)
}
