//! The launcher's own side: its loop, and one worker per request.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::Signal;

use super::fork::{self, Fork};
use super::message::{
    self, ChildStdio, Failure, FailureKind, PidNamespace, Reply, Request, Response,
};
use super::worker::{internal, not_running};
use super::{exec_process, first_process, pause};
use crate::process::kill_new;

/// Forks the launcher and gives the agent's end of the socket to it. It ends when that end closes,
/// and is killed if the agent dies first.
///
/// # Errors
/// If the kernel refuses.
///
/// # Safety
/// The calling process must have one thread only, see [`fork::fork`].
pub unsafe fn spawn() -> Result<OwnedFd, Errno> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: by this function's contract the calling process has one thread.
    match unsafe { fork::fork()? } {
        Fork::Parent(_) => Ok(ours),
        Fork::Child => {
            drop(ours);
            serve(theirs);
            fork::exit(0)
        }
    }
}

fn serve(socket: OwnedFd) {
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    let _ = rustix::thread::set_name(c"bulkhead-launch");
    // The processes it makes inherit this until they execute the container's command.
    let _ = fork::close_to_others();
    // Without the launcher the pod cannot start anything: the OOM killer should spare it. On the host
    // it has the agent's value, which leaves the node's own processes the last word. Workers undo
    // this.
    if std::fs::read_to_string("/proc/self/oom_score_adj").is_ok_and(|now| !now.starts_with('-')) {
        let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    }
    fork::reap_children_automatically(true);
    let mut byte = [0; 1];
    loop {
        let fds = match message::receive(&socket, &mut byte) {
            Ok((0, _)) => return,
            Ok((_, fds)) => fds,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        // SAFETY: the launcher is a fork of a process with one thread (`spawn`), and makes no threads.
        match unsafe { fork::fork() } {
            Ok(Fork::Parent(_)) => {}
            Ok(Fork::Child) => {
                fork::reap_children_automatically(false);
                let _ = std::fs::write("/proc/self/oom_score_adj", "0");
                work(fds);
                fork::exit(0)
            }
            Err(error) => {
                let failure = Failure::new(
                    FailureKind::Internal,
                    format!(
                        "forking in the launcher: {error} (is the guest out of memory or processes?)"
                    ),
                );
                if let Some(socket) = fds.get(1) {
                    let _ = answer(socket, &Response::Failed(failure), &[]);
                }
            }
        }
    }
}

/// One request, in a process of its own.
fn work(fds: Vec<OwnedFd>) {
    let mut fds = fds.into_iter();
    let (Some(payload), Some(socket)) = (fds.next(), fds.next()) else {
        return;
    };
    let (answered, fds) =
        carry_out(payload, fds).unwrap_or_else(|failure| (Response::Failed(failure), Vec::new()));
    let sent = answer(&socket, &answered, &fds);
    if let (Err(_), Response::Started { pid, .. }) = (sent, answered) {
        // The agent gave up waiting: a process that it does not know must not run.
        kill_new(pid);
    }
}

fn answer(socket: &OwnedFd, answer: &Response, fds: &[OwnedFd]) -> io::Result<()> {
    let number = match answer {
        Response::Started { pid, .. } => *pid,
        Response::Failed(_) => 0,
    };
    // Without memory for the response the agent still learns that there was one.
    let payload = message::pack(answer).ok();
    let fds = payload.iter().chain(fds).map(AsFd::as_fd);
    message::send(socket, &number.to_ne_bytes(), &fds.collect::<Vec<_>>())
}

fn carry_out(payload: OwnedFd, mut fds: impl Iterator<Item = OwnedFd>) -> Result<Reply, Failure> {
    let request: Request =
        message::unpack(payload).map_err(|error| internal("reading the agent's request", error))?;
    let mut next = || {
        fds.next()
            .ok_or_else(|| internal("reading the agent's request", "a descriptor is missing"))
    };
    let stdio = if request.has_streams() {
        Some(ChildStdio {
            stdin: next()?,
            stdout: next()?,
            stderr: next()?,
        })
    } else {
        None
    };
    let handles: Vec<_> = fds.collect();
    if handles.len() != request.handles() {
        let text = format!("{} descriptors too many or too few", handles.len());
        return Err(internal("reading the agent's request", text));
    }
    let mut handles = handles.iter();
    match request {
        Request::Create(request) => {
            let joined = request.pids == PidNamespace::Joined;
            let pids = joined.then(|| handles.next()).flatten();
            first_process::run(&request, stdio, handles.next(), pids)
        }
        Request::Exec(request) => match handles.next() {
            Some(target) => exec_process::run(&request, stdio, target),
            None => Err(not_running()),
        },
        Request::Pause(map) => pause::run(map.as_ref()),
    }
}
