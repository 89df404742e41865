//! One process of a container, from fork until it reports that it is in its container. A worker forks
//! an intermediate process, which enters the namespaces that take effect only for children and has
//! no descriptor of the launcher's; its child is the container's process. That one reports over a
//! channel of its own (`ready`), and a failure over a pipe of its own.
//!
//! Not here: what the process does until then (`first_process`, `exec_process`) and after (`finish`).

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Process;
use rustix::fs::{FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, WaitOptions};

use super::errno::errno_text;
use super::fork::{self, Fork};
use super::message::{ChildStdio, Failure, FailureKind, User};
use super::page::{self, Page};
use super::ready::{self, DEADLINE, Ready};
use super::{finish, inherited, payload};
use crate::poll::wait_readable;
use crate::process::kill_new;
use crate::userns::{IdMap, outside};

/// The longest report of a failure: more does not fit into its pipe either.
const MAX_REPORT: usize = 64 * 1024;

/// What the container's process has of the worker.
#[derive(Debug)]
pub struct Child {
    /// For its report that it is ready.
    channel: OwnedFd,
    /// For a failure.
    status: OwnedFd,
    /// Becomes readable with the start.
    pub go: OwnedFd,
    /// See [`page`].
    pub page: Page,
    /// Its standard streams, unless it gets a terminal.
    pub stdio: Option<ChildStdio>,
    /// Files by which it joins a cgroup: the first that lets it.
    cgroups: Vec<OwnedFd>,
}

/// What a worker has of a process that is in its container.
#[derive(Debug)]
pub struct Started {
    /// Its number in the agent's PID namespace.
    pub pid: Pid,
    /// What it reported.
    pub ready: Ready,
    /// Reports a failure.
    pub status: OwnedFd,
    /// Starts it by a byte; its end without one ends the process.
    pub go: OwnedFd,
    /// See [`page`].
    pub page: OwnedFd,
}

/// How a process is made.
pub struct Plan<'a> {
    /// Its limits, OOM score and AppArmor profile.
    pub process: &'a Process,
    /// Files by which it joins a cgroup.
    pub cgroups: Vec<OwnedFd>,
    /// Its standard streams.
    pub stdio: Option<ChildStdio>,
    /// Namespaces its fork makes.
    pub namespaces: libc::c_int,
    /// Descriptors it needs besides.
    pub keep: &'a [BorrowedFd<'a>],
    /// Runs in the intermediate process.
    pub enter: &'a dyn Fn() -> Result<(), Failure>,
    /// Runs in the container's process, and returns only a failure.
    pub run: &'a dyn Fn(Child) -> Failure,
}

impl std::fmt::Debug for Plan<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan").finish_non_exhaustive()
    }
}

/// A failure that is not the request's fault.
pub fn internal(what: &str, error: impl std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Internal, format!("{what}: {error}"))
}

fn os(what: &'static str) -> impl FnOnce(Errno) -> Failure {
    move |error| internal(what, errno_text(error))
}

/// Makes the process and waits until it is in its container.
///
/// # Errors
/// If it does not get there; it is dead or dying then.
pub fn start(plan: Plan<'_>) -> Result<Started, Failure> {
    inherited::set(plan.process)?;
    let (channel, childs_channel) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(os("making a socket"))?;
    let pipe =
        |flags| rustix::pipe::pipe_with(PipeFlags::CLOEXEC | flags).map_err(os("making a pipe"));
    // The agent watches its end.
    let (status, childs_status) = pipe(PipeFlags::NONBLOCK)?;
    let (childs_go, go) = pipe(PipeFlags::empty())?;
    let (number, childs_number) = pipe(PipeFlags::empty())?;
    let page = page::new().map_err(os("making a page"))?;
    let mut keep = vec![
        childs_channel.as_fd(),
        childs_status.as_fd(),
        childs_go.as_fd(),
        childs_number.as_fd(),
        page.as_fd(),
    ];
    keep.extend(plan.keep);
    keep.extend(plan.cgroups.iter().map(AsFd::as_fd));
    if let Some(stdio) = &plan.stdio {
        keep.extend([
            stdio.stdin.as_fd(),
            stdio.stdout.as_fd(),
            stdio.stderr.as_fd(),
        ]);
    }
    // SAFETY: this runs in a worker, which is a fork of the single-threaded launcher and makes no
    // threads.
    let intermediate = match unsafe { fork::fork() }.map_err(os("forking"))? {
        Fork::Parent(pid) => pid,
        Fork::Child => {
            // SAFETY: this process was just forked. It uses only what is in `keep`, and ends by
            // execve or _exit, so that the owners of the others are never dropped in it.
            unsafe { finish::keep_only(&keep) };
            let page = Page::map(&page);
            let child = |page| Child {
                channel: childs_channel,
                status: childs_status,
                go: childs_go,
                page,
                stdio: plan.stdio,
                cgroups: plan.cgroups,
            };
            match page {
                Ok(page) => run_intermediate(
                    child(page),
                    childs_number,
                    plan.namespaces,
                    plan.enter,
                    plan.run,
                ),
                Err(_) => fork::exit(255),
            }
        }
    };
    drop((childs_channel, childs_status, childs_go, childs_number));
    let stdio = plan.stdio;
    let pid = read_number(number);
    let _ = rustix::process::waitpid(Some(intermediate), WaitOptions::empty());
    let ready = match pid {
        Some(pid) => ready::receive(&channel).map(|ready| ready.map(|ready| (pid, ready))),
        None => Ok(None),
    };
    match ready {
        Ok(Some((pid, ready))) => {
            drop(stdio);
            Ok(Started {
                pid,
                ready,
                status,
                go,
                page,
            })
        }
        Ok(None) => Err(failure(&status)),
        Err(error) => {
            if let Some(pid) = pid {
                kill_new(pid.as_raw_nonzero().get());
            }
            Err(internal("waiting for the container's process", error))
        }
    }
}

/// The intermediate process.
fn run_intermediate(
    child: Child,
    number: OwnedFd,
    namespaces: libc::c_int,
    enter: &dyn Fn() -> Result<(), Failure>,
    run: &dyn Fn(Child) -> Failure,
) -> ! {
    let report = |child: &Child, failure: &Failure| {
        if let Ok(status) = child.status.try_clone() {
            payload::report(status, failure);
        }
    };
    if let Err(failure) = enter() {
        report(&child, &failure);
        fork::exit(255);
    }
    // SAFETY: the intermediate process is a fork of a single-threaded worker, and makes no threads.
    match unsafe { fork::fork_into(namespaces) } {
        Ok(Fork::Parent(pid)) => {
            let bytes = pid.as_raw_nonzero().get().to_ne_bytes();
            let _ = rustix::io::write(&number, &bytes);
            fork::exit(0)
        }
        Ok(Fork::Child) => {
            drop(number);
            let status = child.status.try_clone();
            let failure = match child.join_cgroup() {
                Ok(()) => run(child),
                Err(failure) => failure,
            };
            if let Ok(status) = status {
                payload::report(status, &failure);
            }
            fork::exit(255)
        }
        Err(error) => {
            report(&child, &internal("forking", errno_text(error)));
            fork::exit(255)
        }
    }
}

fn read_number(pipe: OwnedFd) -> Option<Pid> {
    let mut bytes = [0; 4];
    wait_readable(&pipe, DEADLINE).ok()?;
    File::from(pipe).read_exact(&mut bytes).ok()?;
    Pid::from_raw(i32::from_ne_bytes(bytes))
}

/// Reads the status pipe until execve, or death, closes it.
///
/// # Errors
/// TimedOut when it stays open, InvalidData when too much comes.
pub fn wait_for_end(status: &OwnedFd) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        wait_readable(status, DEADLINE)?;
        match rustix::io::read(status, &mut buffer[..]) {
            Ok(0) => return Ok(bytes),
            Ok(length) => bytes.extend_from_slice(buffer.get(..length).unwrap_or_default()),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
        if bytes.len() > MAX_REPORT {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
    }
}

/// The failure that the process reported: after its end of the channel has closed, and before the
/// pipe's does.
fn failure(status: &OwnedFd) -> Failure {
    let bytes = wait_for_end(status).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_else(|_| {
        internal(
            "making the container's process",
            "it ended before it reported; the container may be at its limit of memory",
        )
    })
}

/// What became of a process at execve: `None` if it was executed.
///
/// # Errors
/// If that cannot be read.
pub fn outcome(report: &[u8], page: &OwnedFd) -> Result<Option<Failure>, Errno> {
    if !report.is_empty() {
        return Ok(Some(serde_json::from_slice(report).unwrap_or_else(
            |error| internal("reading the report of the container's process", error),
        )));
    }
    Ok(page::read(page)?.map(|(file, error)| payload::refused(&file, error)))
}

impl Child {
    fn join_cgroup(&self) -> Result<(), Failure> {
        let mut last = Errno::NOENT;
        for file in &self.cgroups {
            match rustix::io::write(file, b"0") {
                Ok(_) => return Ok(()),
                Err(error) => last = error,
            }
        }
        Err(match last {
            Errno::NOENT | Errno::NODEV => not_running(),
            error => internal("joining the container's cgroup", errno_text(error)),
        })
    }

    /// Reports that it is in its container.
    ///
    /// # Errors
    /// If the worker is gone.
    pub fn send_ready(
        &self,
        user: Option<User>,
        terminal: Option<BorrowedFd<'_>>,
    ) -> Result<(), Failure> {
        ready::send(&self.channel, user, terminal)
            .map_err(|error| internal("reporting to the launcher", error))
    }
}

/// The failure of an exec whose container has no first process any more.
pub fn not_running() -> Failure {
    Failure::new(
        FailureKind::NotRunning,
        "the container is not running; start it before an exec",
    )
}

/// Opens the files by which a process joins a cgroup. With the opener's rights, so that it works
/// from any namespace (cgroup-v2.rst, Delegation Containment).
///
/// # Errors
/// NotRunning when the cgroup is gone.
pub fn open_cgroup(directory: &Path) -> Result<OwnedFd, Failure> {
    let path: PathBuf = directory.join("cgroup.procs");
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    match rustix::fs::open(&path, flags, Mode::empty()) {
        Ok(file) => Ok(file),
        Err(Errno::NOENT | Errno::NODEV) => Err(not_running()),
        Err(error) => Err(internal(
            "opening the container's cgroup",
            errno_text(error),
        )),
    }
}

/// Makes the process's user the owner of its standard streams: a process that opens /dev/stdout (as
/// in nginx's images) needs the right to.
///
/// # Errors
/// If the kernel refuses.
pub fn give(stdio: &ChildStdio, user: &User, map: Option<&IdMap>) -> Result<(), Failure> {
    let (uid, gid) = outside(map, user.uid, user.gid);
    for stream in [&stdio.stdin, &stdio.stdout, &stdio.stderr] {
        let steps = || -> Result<(), Errno> {
            let kind = FileType::from_raw_mode(rustix::fs::fstat(stream)?.st_mode);
            // Without input it is a null device, which is shared.
            if kind == FileType::Fifo {
                rustix::fs::fchown(stream, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
            }
            Ok(())
        };
        steps().map_err(os("giving the standard streams to the container's user"))?;
    }
    Ok(())
}
