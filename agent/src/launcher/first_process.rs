//! A container's first process, up to the point where it waits for the start. The worker's side
//! first, then what the process itself does.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use bulkhead_proto::agent;
use prost::Message;
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::errno::errno_text;
use super::finish::{self, Identity};
use super::message::{
    ChildStdio, CreateRequest, Failure, FailureKind, PidNamespace, Reply, Response, User,
};
use super::root::error::RootError;
use super::root::{self, plan};
use super::seccomp::{self, Filter};
use super::worker::{self, Child, Plan, internal};
use super::{fork, pty};
use crate::report::report;
use crate::user::{self, UserError};

/// Builds the container.
///
/// # Errors
/// If it cannot be built; a dying process may be left in its cgroup.
pub fn run(
    request: &CreateRequest,
    stdio: Option<ChildStdio>,
    users: Option<&OwnedFd>,
    pids: Option<&OwnedFd>,
) -> Result<Reply, Failure> {
    let process = request.spec.process().as_ref();
    let process = process.ok_or_else(|| invalid("the spec has no process"))?;
    let profile = request
        .spec
        .linux()
        .as_ref()
        .and_then(|l| l.seccomp().as_ref());
    let filter = profile.map(seccomp::compile).transpose();
    let filter = filter.map_err(|error| invalid(&report(&error)))?;
    let wanted = agent::User::decode(request.user.as_slice())
        .map_err(|error| internal("reading the container's user", error))?;

    let namespaces = match request.pids {
        PidNamespace::New => libc::CLONE_NEWPID,
        PidNamespace::Agents | PidNamespace::Joined => 0,
    };
    let copies = stdio.as_ref().map(copy).transpose()?;
    let (users, pids) = (users.map(AsFd::as_fd), pids.map(AsFd::as_fd));
    let keep: Vec<_> = users.into_iter().chain(pids).collect();
    let started = worker::start(Plan {
        process,
        cgroups: vec![worker::open_cgroup(&request.cgroup)?],
        stdio,
        namespaces,
        keep: &keep,
        enter: &|| enter(users, pids),
        run: &|child| match run_process(request, &wanted, filter.as_ref(), child) {
            Ok(never) => match never {},
            Err(failure) => failure,
        },
    })?;
    if let (Some(stdio), Some(user)) = (&copies, &started.ready.user) {
        worker::give(stdio, user, request.users.as_ref())?;
    }
    let mut fds = vec![started.status, started.go, started.page];
    fds.extend(started.ready.terminal);
    let answer = Response::Started {
        pid: started.pid.as_raw_nonzero().get(),
        user: started.ready.user,
        filter,
    };
    Ok((answer, fds))
}

fn invalid(text: &str) -> Failure {
    Failure::new(FailureKind::InvalidSpec, text)
}

fn copy(stdio: &ChildStdio) -> Result<ChildStdio, Failure> {
    let copy = |fd: &OwnedFd| {
        fd.try_clone()
            .map_err(|error| internal("duplicating the standard streams", error))
    };
    Ok(ChildStdio {
        stdin: copy(&stdio.stdin)?,
        stdout: copy(&stdio.stdout)?,
        stderr: copy(&stdio.stderr)?,
    })
}

/// Joins the namespaces that take effect for children: the user namespace first, which then owns
/// the others.
fn enter(users: Option<BorrowedFd<'_>>, pids: Option<BorrowedFd<'_>>) -> Result<(), Failure> {
    let join = |namespace: BorrowedFd<'_>, kind, what: &'static str| {
        move_into_link_name_space(namespace, Some(kind))
            .map_err(|error| internal(what, errno_text(error)))
    };
    if let Some(users) = users {
        join(
            users,
            LinkNameSpaceType::User,
            "joining the pod's user namespace",
        )?;
        fork::become_root()
            .map_err(|error| internal("becoming the user namespace's root", errno_text(error)))?;
    }
    if let Some(pids) = pids {
        join(
            pids,
            LinkNameSpaceType::ProcessID,
            "joining the pod's PID namespace",
        )?;
    }
    Ok(())
}

/// The container's process.
fn run_process(
    request: &CreateRequest,
    wanted: &agent::User,
    filter: Option<&Filter>,
    mut child: Child,
) -> Result<std::convert::Infallible, Failure> {
    let process = request.spec.process().as_ref();
    let process = process.ok_or_else(|| invalid("the spec has no process"))?;
    finish::new_session()?;
    if let Some(stdio) = child.stdio.take() {
        finish::set_stdio(&stdio)?;
    }
    let mut own = UnshareFlags::NEWNS;
    if request.cgroup_namespace {
        // Its root is the cgroup that was joined before.
        own |= UnshareFlags::NEWCGROUP;
    }
    // SAFETY: only CLONE_FILES could make descriptors of this process invalid; NEWNS and NEWCGROUP do
    // not touch them, and the process has no other thread.
    unsafe { rustix::thread::unshare_unsafe(own) }
        .map_err(|error| internal("making the container's namespaces", errno_text(error)))?;
    rustix::process::umask(Mode::empty());
    let built = root::build(plan::Plan {
        spec: &request.spec,
        rootfs: &request.rootfs,
        base: &request.base,
        own_users: request.users.is_some(),
        directory: process.cwd(),
    })
    .map_err(refused)?;
    built.enter().map_err(refused)?;
    let identity = user::resolve(Path::new("/"), wanted);
    let known = identity.as_ref().ok().map(|identity| &identity.user);
    let master = if request.tty {
        let uid = known.map_or(0, |user| user.uid);
        Some(take_terminal(&built, uid)?)
    } else {
        None
    };
    built.seal().map_err(refused)?;
    let user = known.map(|user| User {
        uid: user.uid,
        gid: user.gid,
        gids: user.gids.clone(),
    });
    child.send_ready(user, master.as_ref().map(AsFd::as_fd))?;
    drop((master, built));
    if !wait_for_start(&child)? {
        // Deleted before it was started.
        fork::exit(0);
    }
    Err(start(request, identity, filter, &child))
}

fn refused(error: RootError) -> Failure {
    Failure::new(FailureKind::InvalidSpec, report(&error))
}

fn take_terminal(built: &root::Built, uid: u32) -> Result<OwnedFd, Failure> {
    let (master, slave) =
        pty::open(uid).map_err(|error| internal("opening a terminal in the container", error))?;
    built.console(&slave).map_err(refused)?;
    finish::set_terminal(slave.as_fd())?;
    Ok(master)
}

/// Waits for the start; false if the agent's end of the pipe closed instead.
fn wait_for_start(child: &Child) -> Result<bool, Failure> {
    loop {
        match rustix::io::read(&child.go, &mut [0; 1][..]) {
            Ok(length) => return Ok(length == 1),
            Err(Errno::INTR) => {}
            Err(error) => return Err(internal("waiting for the start", errno_text(error))),
        }
    }
}

fn start(
    request: &CreateRequest,
    identity: Result<user::Identity, UserError>,
    filter: Option<&Filter>,
    child: &Child,
) -> Failure {
    let identity = match identity {
        Ok(identity) => identity,
        Err(error) => return invalid(&report(&error)),
    };
    if let Some(map) = &request.users
        && let Err(error) = map.check(&identity.user)
    {
        return invalid(&report(&error));
    }
    let Some(process) = request.spec.process() else {
        return invalid("the spec has no process");
    };
    let who = Identity {
        uid: identity.user.uid,
        gid: identity.user.gid,
        gids: &identity.user.gids,
        home: &user::home(Path::new("/"), identity.user.uid),
    };
    finish::execute(process, who, filter, &child.page)
}
