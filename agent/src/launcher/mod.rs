//! The launcher: a single-threaded process, forked before the agent has threads, that makes every
//! container process. Making one takes forks and changes of namespaces, which a process with
//! threads must not do. The launcher forks one worker per request, so that no request waits for
//! another; when a worker ends, its children become the agent's.
//!
//! [`Launcher`] is the agent's side; [`server`] and below run in the launcher.

pub mod capabilities;
pub mod errno;
pub mod exec_process;
pub mod finish;
pub mod first_process;
pub mod fork;
pub mod inherited;
pub mod message;
pub mod page;
pub mod pause;
pub mod payload;
pub mod pty;
pub mod ready;
pub mod root;
pub mod seccomp;
pub mod server;
pub mod worker;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::sync::oneshot;
use tokio::time::timeout;

use self::message::{ChildStdio, Failure, Request, Response, User};
use self::seccomp::Filter;
use crate::async_fd;
use crate::process::exit::ExitStatus;
use crate::process::kill_new;
use crate::process::reaper::Reaper;

/// How long a launch may take: it reads a few files and does not use the network, but the guest may
/// be short of CPU time.
const DEADLINE: Duration = Duration::from_secs(60);

/// Why a process could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The launcher reported a failure.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// It did not answer in time.
    #[error("the launcher did not start {what} within {} s: the guest is overloaded or out of memory", DEADLINE.as_secs())]
    Deadline {
        /// What was to be started.
        what: &'static str,
    },
    /// The request could not be sent, or the answer not be read.
    #[error("asking the launcher to start {what} (if the launcher is dead, replace the pod)")]
    Io {
        /// What was to be started.
        what: &'static str,
        /// The cause.
        #[source]
        error: io::Error,
    },
}

/// A container's process that waits for its start.
#[derive(Debug)]
pub struct Waiting {
    /// Reports why the command could not be executed; end of file without a report means that it
    /// was.
    pub status: OwnedFd,
    /// A byte starts the process; its end without one ends it.
    pub go: OwnedFd,
    /// Why the kernel refused the command, see [`page`].
    pub page: OwnedFd,
}

/// A process the launcher started.
#[derive(Debug)]
pub struct Launched {
    /// Its number in the guest's root PID namespace.
    pub pid: i32,
    /// Its end.
    pub end: oneshot::Receiver<ExitStatus>,
    /// For a created container: what its start needs.
    pub waiting: Option<Waiting>,
    /// For a created container: who its process is, if the image knows.
    pub user: Option<User>,
    /// For a created container: its seccomp filter.
    pub filter: Option<Filter>,
    /// The terminal's master.
    pub terminal: Option<OwnedFd>,
}

/// The agent's side of the launcher.
#[derive(Debug, Clone)]
pub struct Launcher {
    socket: Arc<OwnedFd>,
    reaper: Reaper,
}

impl Launcher {
    /// Takes the agent's end of the socket that [`server::spawn`] made.
    pub fn new(socket: OwnedFd, reaper: Reaper) -> Self {
        Self {
            socket: Arc::new(socket),
            reaper,
        }
    }

    /// Starts a process. `stdio` is given for one without a terminal, `handles` are the processes
    /// and namespaces that the request refers to, in its order.
    ///
    /// # Errors
    /// See [`LaunchError`]; nothing is left running after an error.
    pub async fn launch(
        &self,
        request: Request,
        stdio: Option<ChildStdio>,
        handles: &[BorrowedFd<'_>],
    ) -> Result<Launched, LaunchError> {
        let (what, created, tty) = match &request {
            Request::Create(create) => ("a container", true, create.tty),
            Request::Exec(exec) => ("a process in a container", false, exec.tty),
            Request::Pause(_) => ("the pod's pause process", false, false),
        };
        let io = |error: io::Error| LaunchError::Io { what, error };
        let errno = |error: rustix::io::Errno| LaunchError::Io {
            what,
            error: error.into(),
        };
        if stdio.is_some() != request.has_streams() || handles.len() != request.handles() {
            return Err(io(io::ErrorKind::InvalidInput.into()));
        }
        // Until the end is awaited, the reaper remembers the ends of unknown processes.
        let _guard = self.reaper.launching();

        let payload = message::pack(&request).map_err(io)?;
        let (answer, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(errno)?;
        let mut fds = vec![payload.as_fd(), theirs.as_fd()];
        if let Some(stdio) = &stdio {
            fds.extend([
                stdio.stdin.as_fd(),
                stdio.stdout.as_fd(),
                stdio.stderr.as_fd(),
            ]);
        }
        fds.extend(handles);
        // A packet of one byte: the launcher reads them at once, so this does not block.
        message::send(&*self.socket, b"r", &fds).map_err(io)?;
        drop((theirs, stdio, payload));

        let answer = async_fd::readable(answer).map_err(io)?;
        let mut number = [0; 4];
        // Dropping the socket at the deadline makes a late worker kill what it started.
        let received = timeout(DEADLINE, async {
            loop {
                let mut ready = answer.readable().await?;
                match ready.try_io(|fd| message::receive(fd.get_ref(), &mut number)) {
                    Ok(received) => return received,
                    Err(_would_block) => {}
                }
            }
        });
        let received = received.await.map_err(|_| LaunchError::Deadline { what })?;
        let taken = received.and_then(|(length, fds)| match length {
            0 => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the worker died before it answered",
            )),
            _ => take(fds, created, tty),
        });
        let (answer, waiting, terminal) = match taken {
            Ok(taken) => taken,
            Err(error) => {
                // Out of descriptors: a process that cannot be watched must not run.
                kill_new(i32::from_ne_bytes(number));
                return Err(io(error));
            }
        };
        match answer {
            Response::Failed(failure) => Err(failure.into()),
            Response::Started { pid, user, filter } => Ok(Launched {
                pid,
                end: self.reaper.watch(pid),
                waiting,
                user,
                filter,
                terminal,
            }),
        }
    }
}

/// The parts of a response's packet.
fn take(
    fds: Vec<OwnedFd>,
    created: bool,
    tty: bool,
) -> io::Result<(Response, Option<Waiting>, Option<OwnedFd>)> {
    let mut fds = fds.into_iter();
    let mut next = || {
        fds.next()
            .ok_or(io::Error::from(io::ErrorKind::InvalidData))
    };
    let answer = message::unpack(next()?)?;
    let started = matches!(answer, Response::Started { .. });
    let waiting = if started && created {
        let (status, go, page) = (next()?, next()?, next()?);
        Some(Waiting { status, go, page })
    } else {
        None
    };
    let terminal = (started && tty).then(next).transpose()?;
    Ok((answer, waiting, terminal))
}
