//! One process of a container, from fork to its first word. A worker forks a process between, which
//! enters the namespaces that concern its children alone and has no descriptor of the launcher's;
//! its child is the container's process. What that says comes by a channel of its own, and a
//! failure by a pipe of its own.
//!
//! Not here: what the process does until then (`create`, `exec`) and after (`finish`).

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::{PosixRlimit, PosixRlimitType, Process};
use rustix::fs::{FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal, WaitOptions};
use serde::{Deserialize, Serialize};

use super::errno::words;
use super::fork::{self, Fork};
use super::message::{self, ChildStdio, Failure, FailureKind, User};
use super::page::{self, Page};
use super::{finish, payload, terminal};
use crate::userns::{IdMap, outside};

/// How long the container's process may take to its first word; it touches nothing but the
/// container's files.
const DEADLINE: Duration = Duration::from_secs(50);
/// The longest first word, without the groups.
const MAX_WORD: usize = 1024;
/// How many groups a process can have (linux/limits.h, NGROUPS_MAX).
const MAX_GROUPS: usize = 65_536;
/// How many of them one packet takes.
const GROUPS: usize = 4096;
/// The longest report of a failure: more does not fit into its pipe either.
const MAX_REPORT: usize = 64 * 1024;

/// What the container's process says when it is in its container.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct FirstWord {
    /// Who it is going to be, if it is for it to know. All groups come in packets of their own.
    pub user: Option<User>,
    /// How many those are.
    groups: usize,
}

impl FirstWord {
    /// One that says who the process is going to be.
    pub fn of(user: Option<User>) -> Self {
        Self { user, groups: 0 }
    }
}

/// What the container's process has of the worker.
#[derive(Debug)]
pub struct Child {
    /// For its first word, and the master of a terminal.
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

/// What a worker gets of a process that has said its first word.
#[derive(Debug)]
pub struct Started {
    /// Its number in the agent's PID namespace.
    pub pid: Pid,
    /// Its first word.
    pub word: FirstWord,
    /// The master of its terminal.
    pub terminal: Option<OwnedFd>,
    /// Where a failure is told.
    pub status: OwnedFd,
    /// Starts it by a byte; its end without one ends the process.
    pub go: OwnedFd,
    /// See [`page`].
    pub page: OwnedFd,
}

/// How a process comes into being.
pub struct Plan<'a> {
    /// Its limits and its place with the OOM killer.
    pub process: &'a Process,
    /// Files by which it joins a cgroup.
    pub cgroups: Vec<OwnedFd>,
    /// Its standard streams.
    pub stdio: Option<ChildStdio>,
    /// Namespaces its fork makes.
    pub namespaces: libc::c_int,
    /// Descriptors it needs besides.
    pub keep: &'a [BorrowedFd<'a>],
    /// Runs in the process between.
    pub enter: &'a dyn Fn() -> Result<(), Failure>,
    /// Runs in the container's process, and returns only a failure.
    pub run: &'a dyn Fn(Child) -> Failure,
}

impl std::fmt::Debug for Plan<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan").finish_non_exhaustive()
    }
}

/// A failure of a step that is nobody's fault but the guest's.
pub fn internal(what: &str, error: impl std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Internal, format!("{what}: {error}"))
}

fn os(what: &'static str) -> impl FnOnce(Errno) -> Failure {
    move |error| internal(what, words(error))
}

/// Makes the process and waits for its first word.
///
/// # Errors
/// Why there is none; the process is dead or dying then.
pub fn start(plan: Plan<'_>) -> Result<Started, Failure> {
    prepare(plan.process)?;
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
    // SAFETY: a worker has one thread.
    let between = match unsafe { fork::fork() }.map_err(os("forking"))? {
        Fork::Parent(pid) => pid,
        Fork::Child => {
            finish::keep_only(&keep);
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
                Ok(page) => between(
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
    let _ = rustix::process::waitpid(Some(between), WaitOptions::empty());
    let first = match pid {
        Some(pid) => first_word(&channel).map(|found| found.map(|found| (pid, found))),
        None => Ok(None),
    };
    match first {
        Ok(Some((pid, (word, terminal)))) => {
            drop(stdio);
            Ok(Started {
                pid,
                word,
                terminal,
                status,
                go,
                page,
            })
        }
        Ok(None) => Err(told(&status)),
        Err(error) => {
            if let Some(pid) = pid {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
            Err(internal("waiting for the container's process", error))
        }
    }
}

/// What the process inherits: set here, where nothing has been entered yet, and by the agent's own
/// procfs.
fn prepare(process: &Process) -> Result<(), Failure> {
    if let Some(score) = process.oom_score_adj() {
        fs::write("/proc/self/oom_score_adj", score.to_string())
            .map_err(|error| internal("setting the OOM score", error))?;
    }
    for limit in process.rlimits().iter().flatten() {
        set_limit(limit)?;
    }
    if let Some(profile) = process.apparmor_profile() {
        // In force from execve on; forks inherit it.
        let text = format!("exec {profile}");
        fs::write("/proc/self/attr/apparmor/exec", &text)
            .or_else(|_| fs::write("/proc/self/attr/exec", &text))
            .map_err(|error| internal("setting the AppArmor profile", error))?;
    }
    Ok(())
}

fn set_limit(limit: &PosixRlimit) -> Result<(), Failure> {
    use rustix::process::Resource;
    let resource = match limit.typ() {
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitStack => Resource::Stack,
    };
    let value = |value: u64| (value != libc::RLIM_INFINITY).then_some(value);
    let limits = rustix::process::Rlimit {
        current: value(limit.soft()),
        maximum: value(limit.hard()),
    };
    rustix::process::setrlimit(resource, limits).map_err(|error| {
        let text = format!("setting the limit {:?}: {}", limit.typ(), words(error));
        Failure::new(FailureKind::InvalidSpec, text)
    })
}

/// The process between.
fn between(
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
    // SAFETY: this process was forked from one with one thread, and has made none.
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
            report(&child, &internal("forking", words(error)));
            fork::exit(255)
        }
    }
}

fn read_number(pipe: OwnedFd) -> Option<Pid> {
    let mut bytes = [0; 4];
    terminal::wait_readable(&pipe, DEADLINE).ok()?;
    File::from(pipe).read_exact(&mut bytes).ok()?;
    Pid::from_raw(i32::from_ne_bytes(bytes))
}

/// The first word and a terminal's master; none if the process has ended without.
fn first_word(channel: &OwnedFd) -> std::io::Result<Option<(FirstWord, Option<OwnedFd>)>> {
    terminal::wait_readable(channel, DEADLINE)?;
    let mut bytes = [0; MAX_WORD];
    let (length, fds) = message::receive(channel, &mut bytes)?;
    if length == 0 {
        return Ok(None);
    }
    let mut word: FirstWord = serde_json::from_slice(bytes.get(..length).unwrap_or_default())?;
    let groups = receive_groups(channel, word.groups)?;
    if let Some(user) = &mut word.user {
        user.gids = groups;
    }
    let master = fds.into_iter().next();
    // From a process that others in a shared PID namespace may have had in their hands.
    if let Some(master) = &master {
        terminal::check_master(master)?;
    }
    Ok(Some((word, master)))
}

fn receive_groups(channel: &OwnedFd, count: usize) -> std::io::Result<Vec<u32>> {
    let wrong = || std::io::Error::from(std::io::ErrorKind::InvalidData);
    if count > MAX_GROUPS {
        return Err(wrong());
    }
    let mut groups = Vec::with_capacity(count);
    let mut packet = vec![0; GROUPS * size_of::<u32>()];
    while groups.len() < count {
        terminal::wait_readable(channel, DEADLINE)?;
        let (length, _) = message::receive(channel, &mut packet)?;
        let (words, rest) = packet.get(..length).unwrap_or_default().as_chunks();
        if words.is_empty() || !rest.is_empty() {
            return Err(wrong());
        }
        groups.extend(words.iter().map(|word| u32::from_ne_bytes(*word)));
    }
    if groups.len() > count {
        return Err(wrong());
    }
    Ok(groups)
}

/// What came through the status pipe until execve, or death, closed it.
///
/// # Errors
/// TimedOut when it stays open, InvalidData when too much comes.
pub fn wait_for_end(status: &OwnedFd) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        terminal::wait_readable(status, DEADLINE)?;
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

/// What the process itself said about its failure: it is told after the channel has ended, and
/// before the pipe does.
fn told(status: &OwnedFd) -> Failure {
    let bytes = wait_for_end(status).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_else(|_| {
        internal(
            "making the container's process",
            "it ended before it reported; the container may be at its limit of memory",
        )
    })
}

/// How a process ended its way to execve, from what it left.
///
/// # Errors
/// When that cannot be read.
pub fn outcome(told: &[u8], page: &OwnedFd) -> Result<Option<Failure>, Errno> {
    if !told.is_empty() {
        return Ok(Some(serde_json::from_slice(told).unwrap_or_else(|error| {
            internal("reading the report of the container's process", error)
        })));
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
            error => internal("joining the container's cgroup", words(error)),
        })
    }

    /// Says the first word.
    ///
    /// # Errors
    /// When the worker is gone.
    pub fn say(&self, mut word: FirstWord, master: Option<BorrowedFd<'_>>) -> Result<(), Failure> {
        // Groups beyond the limit are dropped here; setgroups(2) refuses them at the start.
        let mut groups = word
            .user
            .as_mut()
            .map(|user| std::mem::take(&mut user.gids))
            .unwrap_or_default();
        groups.truncate(MAX_GROUPS);
        word.groups = groups.len();
        let bytes =
            serde_json::to_vec(&word).map_err(|error| internal("saying who it is", error))?;
        let fds: Vec<_> = master.into_iter().collect();
        let telling = |error| internal("telling the launcher", error);
        message::send(&self.channel, &bytes, &fds).map_err(telling)?;
        for some in groups.chunks(GROUPS) {
            let bytes: Vec<u8> = some.iter().flat_map(|group| group.to_ne_bytes()).collect();
            message::send(&self.channel, &bytes, &[]).map_err(telling)?;
        }
        Ok(())
    }
}

/// Said of a container whose first process is gone.
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
        Err(error) => Err(internal("opening the container's cgroup", words(error))),
    }
}

/// Gives standard streams to the process's user: one that opens /dev/stdout (as nginx's images do)
/// opens a file that must be its own.
///
/// # Errors
/// The kernel's.
pub fn give(stdio: &ChildStdio, user: &User, map: Option<&IdMap>) -> Result<(), Failure> {
    let (uid, gid) = outside(map, user.uid, user.gid);
    for stream in [&stdio.stdin, &stdio.stdout, &stdio.stderr] {
        let steps = || -> Result<(), Errno> {
            let kind = FileType::from_raw_mode(rustix::fs::fstat(stream)?.st_mode);
            // Without input the standard input is /dev/null, which is everybody's.
            if kind == FileType::Fifo {
                rustix::fs::fchown(stream, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
            }
            Ok(())
        };
        steps().map_err(os("giving the standard streams to the container's user"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC;
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
    }

    fn child(channel: OwnedFd) -> Child {
        let (go, status) = rustix::pipe::pipe().unwrap();
        Child {
            channel,
            status,
            go,
            page: Page::map(page::new().unwrap()).unwrap(),
            stdio: None,
            cgroups: Vec::new(),
        }
    }

    #[test]
    fn the_first_word_carries_as_many_groups_as_there_can_be() {
        for count in [0, 1, GROUPS, GROUPS + 1, MAX_GROUPS, MAX_GROUPS + 1] {
            let (ours, theirs) = channel();
            let gids: Vec<u32> = (0..u32::try_from(count).unwrap()).collect();
            let user = User {
                uid: 1,
                gid: 2,
                gids: gids.clone(),
            };
            // More packets than a socket holds: somebody must take them meanwhile.
            let said =
                std::thread::spawn(move || child(theirs).say(FirstWord::of(Some(user)), None));
            let (word, master) = first_word(&ours).unwrap().unwrap();
            assert!(said.join().unwrap().is_ok() && master.is_none());
            let told = word.user.unwrap().gids;
            assert_eq!(told, gids[..count.min(MAX_GROUPS)], "{count}");
        }
    }

    #[test]
    fn what_is_no_first_word_is_refused() {
        let word = |groups: usize| {
            format!(r#"{{"user":{{"uid":1,"gid":2,"gids":[]}},"groups":{groups}}}"#)
        };
        let cases: [(String, &[&[u8]]); 6] = [
            ("{".to_owned(), &[]),
            (word(MAX_GROUPS + 1), &[]),
            (word(usize::MAX), &[]),
            // Half a number, nothing, and more than was announced.
            (word(1), &[&[0; 3]]),
            (word(1), &[]),
            (word(1), &[&[0; 8]]),
        ];
        for (word, packets) in cases {
            let (ours, theirs) = channel();
            message::send(&theirs, word.as_bytes(), &[]).unwrap();
            for packet in packets {
                message::send(&theirs, packet, &[]).unwrap();
            }
            drop(theirs);
            assert!(first_word(&ours).is_err(), "{word} {packets:?}");
        }
    }
}
