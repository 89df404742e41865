//! A further process in a running container. Runs in a worker.
//!
//! Not by libcontainer's tenant builder: that one (0.7) leaves out the container's seccomp filter,
//! and reports every failure as text. The pieces that are the same for both ways in (limits,
//! identity, capabilities, filters) are libcontainer's.

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use libcontainer::capabilities;
use libcontainer::seccomp::initialize_seccomp;
use libcontainer::syscall::Syscall;
use libcontainer::syscall::syscall::create_syscall;
use oci_spec::runtime::{LinuxSeccomp, Process};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, WaitOptions};
use rustix::thread::ThreadNameSpaceType;

use super::fork::{self, Fork};
use super::message::{ChildStdio, ExecRequest, Failure, FailureKind};
use super::server::Started;
use super::{holder, payload, terminal};

/// How long the child may take from fork to execve; it touches nothing but the container's files.
const DEADLINE: Duration = Duration::from_secs(50);

fn internal(what: &str, error: impl std::fmt::Display) -> Failure {
    Failure::new(
        FailureKind::Internal,
        format!("{what} for an exec failed: {error}"),
    )
}

fn not_running() -> Failure {
    Failure::new(
        FailureKind::NotRunning,
        "the container is not running; start it before an exec",
    )
}

/// Runs the process.
///
/// # Errors
/// Why it cannot run; nothing is left of it then.
pub fn run(request: &ExecRequest, stdio: Option<ChildStdio>) -> Result<Started, Failure> {
    let target = Pid::from_raw(request.target_pid).ok_or_else(not_running)?;
    let target = rustix::process::pidfd_open(target, PidfdFlags::empty()).map_err(|error| {
        if error == Errno::SRCH {
            not_running()
        } else {
            internal("opening the container", error)
        }
    })?;
    join_cgroup(request)?;
    if let Some(score) = request.process.oom_score_adj() {
        fs::write("/proc/self/oom_score_adj", score.to_string())
            .map_err(|error| internal("setting the OOM score", error))?;
    }
    let syscall = create_syscall();
    for limit in request.process.rlimits().iter().flatten() {
        syscall.set_rlimit(limit).map_err(|error| {
            Failure::new(
                FailureKind::InvalidSpec,
                format!("limit {:?}: {error}", limit.typ()),
            )
        })?;
    }
    if enter(&target, request.target_pid)? {
        // The terminal, and what the process makes before it changes to its user, must have an
        // owner that exists in there.
        holder::become_root().map_err(|error| internal("becoming the container's root", error))?;
    }

    let (status_read, status_write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
        .map_err(|error| internal("making the status pipe", error))?;
    let (master, stdio) = match stdio {
        Some(stdio) => (None, stdio),
        None => {
            let (master, slave) = terminal::open(request.process.user().uid())
                .map_err(|error| internal("opening a terminal in the container", error))?;
            let copy = |fd: &OwnedFd| {
                fd.try_clone()
                    .map_err(|error| internal("duplicating the terminal", error))
            };
            let stdio = ChildStdio {
                stdin: copy(&slave)?,
                stdout: copy(&slave)?,
                stderr: slave,
            };
            (Some(master), stdio)
        }
    };
    // SAFETY: a worker has one thread.
    let child = unsafe { fork::fork() }.map_err(|error| {
        internal(
            "forking (the container may be at its limit of processes)",
            error,
        )
    })?;
    let pid = match child {
        Fork::Child => {
            drop(status_read);
            let failure = become_process(&*syscall, request, &stdio, master.is_some());
            payload::report(status_write, &failure);
            fork::exit(255)
        }
        Fork::Parent(pid) => pid,
    };
    drop((status_write, stdio));
    match outcome(status_read) {
        None => Ok((pid, master.into_iter().collect())),
        Some(failure) => {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
            Err(failure)
        }
    }
}

/// What came through the status pipe: nothing means that execve closed it.
fn outcome(status: OwnedFd) -> Option<Failure> {
    if let Err(error) = terminal::wait_readable(&status, DEADLINE) {
        return Some(internal("waiting for execve", error));
    }
    let mut bytes = Vec::new();
    if let Err(error) = fs::File::from(status).read_to_end(&mut bytes) {
        return Some(internal("reading the outcome", error));
    }
    if bytes.is_empty() {
        return None;
    }
    Some(
        serde_json::from_slice(&bytes)
            .unwrap_or_else(|error| internal("the child's report", error)),
    )
}

fn join_cgroup(request: &ExecRequest) -> Result<(), Failure> {
    let join = |cgroup: &std::path::Path| fs::write(cgroup.join("cgroup.procs"), "0");
    let error = match join(&request.cgroup) {
        Ok(()) => return Ok(()),
        Err(error) => error,
    };
    match Errno::from_io_error(&error) {
        Some(Errno::NOENT | Errno::NODEV) => Err(not_running()),
        // The container has moved its processes into cgroups of its own (systemd does), so that
        // its own may hold none: join where its first process is (cgroup v2, no internal
        // processes).
        Some(Errno::BUSY | Errno::NOTSUP) => {
            let own = fs::read_to_string(format!("/proc/{}/cgroup", request.target_pid))
                .map_err(|_| not_running())?;
            let below = own
                .lines()
                .find_map(|line| line.strip_prefix("0::/"))
                .ok_or_else(|| internal("finding the container's cgroup", &error))?;
            // The first process may have been moved out of its own cgroup only by its own doing;
            // joining outside would escape the limits.
            let root = std::path::Path::new("/sys/fs/cgroup").join(below);
            if !root.starts_with(&request.cgroup) {
                return Err(internal("joining the container's cgroup", error));
            }
            join(&root).map_err(|error| internal("joining the container's cgroup", error))
        }
        _ => Err(internal("joining the container's cgroup", error)),
    }
}

/// Joins the container's namespaces. Those it shares with the guest are joined again, which is
/// no change; the user namespace only if it has one of its own (joining one's own is EINVAL).
/// Whether that was so is the result.
fn enter(target: &OwnedFd, pid: i32) -> Result<bool, Failure> {
    let mut kinds = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::PROCESS_ID
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::CONTROL_GROUP;
    let user = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user")).ok();
    let own_users = user("self") != user(&pid.to_string());
    if own_users {
        kinds |= ThreadNameSpaceType::USER;
    }
    rustix::thread::move_into_thread_name_spaces(target.as_fd(), kinds).map_err(|error| {
        if error == Errno::SRCH {
            not_running()
        } else {
            internal("entering the container", error)
        }
    })?;
    Ok(own_users)
}

/// In the child: everything up to execve. Returns only a failure.
fn become_process(
    syscall: &dyn Syscall,
    request: &ExecRequest,
    stdio: &ChildStdio,
    tty: bool,
) -> Failure {
    match prepare(
        syscall,
        &request.process,
        request.seccomp.as_ref(),
        stdio,
        tty,
    ) {
        Ok(()) => payload::execute(&request.process),
        Err(failure) => failure,
    }
}

fn prepare(
    syscall: &dyn Syscall,
    process: &Process,
    seccomp: Option<&LinuxSeccomp>,
    stdio: &ChildStdio,
    tty: bool,
) -> Result<(), Failure> {
    rustix::process::setsid().map_err(|error| internal("setsid", error))?;
    if tty {
        rustix::process::ioctl_tiocsctty(&stdio.stdin)
            .map_err(|error| internal("taking the terminal", error))?;
    }
    set_stdio(stdio).map_err(|error| internal("setting the standard streams", error))?;
    let user = process.user();
    if let Some(mask) = user.umask() {
        rustix::process::umask(Mode::from_raw_mode(mask & 0o777));
    }
    // First as root, because the user may not be able to reach it (root squash the other way
    // round); then, if root cannot, as the user.
    let enter_directory = || rustix::process::chdir(process.cwd().as_path());
    let retry_directory = match enter_directory() {
        Ok(()) => false,
        Err(Errno::ACCESS | Errno::PERM) => true,
        Err(error) => return Err(bad_directory(process, error)),
    };
    let groups: Vec<_> = user
        .additional_gids()
        .iter()
        .flatten()
        .map(|gid| rustix::fs::Gid::from_raw(*gid))
        .collect();
    rustix::thread::set_thread_groups(&groups)
        .map_err(|error| internal("setting supplementary groups", error))?;
    // In force from execve on, and before a filter that may forbid the write.
    if let Some(profile) = process.apparmor_profile() {
        libcontainer::apparmor::apply_profile(profile)
            .map_err(|error| internal("setting the AppArmor profile", error))?;
    }
    // Loading a filter takes CAP_SYS_ADMIN or no_new_privs (seccomp(2)): without the latter it must
    // come before the capabilities go.
    let no_new_privileges = process.no_new_privileges().unwrap_or(false);
    let load = |filter: &LinuxSeccomp| {
        initialize_seccomp(filter)
            .map(drop)
            .map_err(|error| internal("loading seccomp", error))
    };
    if let (Some(filter), false) = (seccomp, no_new_privileges) {
        load(filter)?;
    }
    set_identity(user.uid(), user.gid())
        .map_err(|error| internal("changing to the user", error))?;
    capabilities::reset_effective(syscall)
        .map_err(|error| internal("resetting capabilities", error))?;
    if let Some(wanted) = process.capabilities() {
        capabilities::drop_privileges(wanted, syscall)
            .map_err(|error| internal("dropping capabilities", error))?;
    }
    if retry_directory {
        enter_directory().map_err(|error| bad_directory(process, error))?;
    }
    if no_new_privileges {
        rustix::thread::set_no_new_privs(true)
            .map_err(|error| internal("setting no_new_privs", error))?;
        if let Some(filter) = seccomp {
            load(filter)?;
        }
    }
    // Everything the agent opened is close-on-exec; this holds even for what it forgot.
    // SAFETY: sets a flag on descriptors, closes none.
    if unsafe { libc::close_range(3, u32::MAX, CLOSE_RANGE_CLOEXEC) } != 0 {
        return Err(internal("close_range", std::io::Error::last_os_error()));
    }
    Ok(())
}

/// linux/close_range.h
const CLOSE_RANGE_CLOEXEC: i32 = 4;

fn bad_directory(process: &Process, error: Errno) -> Failure {
    Failure::new(
        FailureKind::InvalidSpec,
        format!(
            "working directory {} in the container: {error}",
            process.cwd().display()
        ),
    )
}

/// Changes user and group, keeping the permitted capabilities for the step after.
fn set_identity(uid: u32, gid: u32) -> Result<(), Errno> {
    let (uid, gid) = (
        rustix::fs::Uid::from_raw(uid),
        rustix::fs::Gid::from_raw(gid),
    );
    rustix::thread::set_keep_capabilities(true)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    rustix::thread::set_keep_capabilities(false)
}

fn set_stdio(stdio: &ChildStdio) -> Result<(), Errno> {
    rustix::stdio::dup2_stdin(&stdio.stdin)?;
    rustix::stdio::dup2_stdout(&stdio.stdout)?;
    rustix::stdio::dup2_stderr(&stdio.stderr)
}
