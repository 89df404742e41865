//! A further process in a running container. The worker's side first, then what the process itself
//! does.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::thread::{ThreadNameSpaceType, UnshareFlags};

use super::capabilities::Sets;
use super::errno::errno_text;
use super::finish::{self, Identity};
use super::message::{ChildStdio, ExecRequest, Failure, Reply, Response, User};
use super::worker::{self, Child, Plan, internal, not_running};
use super::{fork, pty};
use crate::process::kill_new;
use crate::user;

/// Runs the process.
///
/// # Errors
/// If it cannot run; it is dead or dying then.
pub fn run(
    request: &ExecRequest,
    stdio: Option<ChildStdio>,
    target: &OwnedFd,
) -> Result<Reply, Failure> {
    let mut cgroups = vec![worker::open_cgroup(&request.cgroup)?];
    cgroups.extend(where_the_first_is(request));
    if let Some(stdio) = &stdio {
        let user = request.process.user();
        let user = User {
            uid: user.uid(),
            gid: user.gid(),
            gids: Vec::new(),
        };
        worker::give(stdio, &user, request.map.as_ref())?;
    }
    // Joining one's own is EINVAL.
    let own_users = request.map.is_some();
    let writes_cgroups = Sets::of(request.process.capabilities().as_ref()).mounts();
    let keep = [target.as_fd()];
    let started = worker::start(Plan {
        process: &request.process,
        cgroups,
        stdio,
        namespaces: 0,
        keep: &keep,
        enter: &|| enter(target, own_users, writes_cgroups),
        run: &|child| match run_process(request, child, writes_cgroups) {
            Ok(never) => match never {},
            Err(failure) => failure,
        },
    })?;
    let failure = match worker::wait_for_end(&started.status) {
        Ok(report) => worker::outcome(&report, &started.page)
            .map_err(|error| internal("reading the outcome", errno_text(error)))?,
        Err(error) => Some(internal("waiting for execve", error)),
    };
    if let Some(failure) = failure {
        kill_new(started.pid.as_raw_nonzero().get());
        return Err(failure);
    }
    let answer = Response::Started {
        pid: started.pid.as_raw_nonzero().get(),
        user: None,
        filter: None,
    };
    Ok((answer, started.ready.terminal.into_iter().collect()))
}

/// The container may have moved its processes into cgroups of its own (systemd does), and then its
/// own cgroup may not have any (cgroup v2, no internal processes): the exec goes where the first
/// process is.
fn where_the_first_is(request: &ExecRequest) -> Option<OwnedFd> {
    let own = fs::read_to_string(format!("/proc/{}/cgroup", request.target_pid)).ok()?;
    let below = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let root = Path::new("/sys/fs/cgroup").join(below);
    // The first process may have been moved out of its own cgroup only by its own doing; joining
    // outside would escape the limits.
    root.starts_with(&request.cgroup)
        .then(|| worker::open_cgroup(&root).ok())
        .flatten()
}

/// Joins the container's namespaces. Those it shares with the guest are joined again, which is no
/// change.
fn enter(target: &OwnedFd, own_users: bool, writes_cgroups: bool) -> Result<(), Failure> {
    let mut kinds = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::PROCESS_ID
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::NETWORK;
    if writes_cgroups {
        kinds |= ThreadNameSpaceType::CONTROL_GROUP;
    }
    if own_users {
        kinds |= ThreadNameSpaceType::USER;
    }
    rustix::thread::move_into_thread_name_spaces(target.as_fd(), kinds).map_err(|error| {
        if error == Errno::SRCH {
            not_running()
        } else {
            internal("entering the container", errno_text(error))
        }
    })?;
    if own_users {
        // The terminal, and what the process makes before it changes to its user, must have an
        // owner that exists in there.
        fork::become_root()
            .map_err(|error| internal("becoming the container's root", errno_text(error)))?;
    }
    Ok(())
}

/// The container's process.
fn run_process(
    request: &ExecRequest,
    mut child: Child,
    writes_cgroups: bool,
) -> Result<std::convert::Infallible, Failure> {
    let user = request.process.user();
    finish::new_session()?;
    if !writes_cgroups {
        // Its own cgroup is the root of what it sees, as the container's is for the container:
        // programs that look up their limits by /proc/self/cgroup find them. A process that may
        // write the container's cgroups sees all of them.
        // SAFETY: only CLONE_FILES could make descriptors of this process invalid; NEWCGROUP does not
        // touch them, and the process has no other thread.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWCGROUP) }
            .map_err(|error| internal("making a cgroup namespace", errno_text(error)))?;
    }
    let master = match child.stdio.take() {
        Some(stdio) => {
            finish::set_stdio(&stdio)?;
            None
        }
        None => {
            let (master, slave) = pty::open(user.uid())
                .map_err(|error| internal("opening a terminal in the container", error))?;
            finish::set_terminal(slave.as_fd())?;
            Some(master)
        }
    };
    child.send_ready(None, master.as_ref().map(AsFd::as_fd))?;
    drop(master);
    let who = Identity {
        uid: user.uid(),
        gid: user.gid(),
        gids: user.additional_gids().as_deref().unwrap_or_default(),
        home: &user::home(Path::new("/"), user.uid()),
    };
    Err(finish::execute(
        &request.process,
        who,
        request.filter.as_ref(),
        &child.page,
    ))
}
