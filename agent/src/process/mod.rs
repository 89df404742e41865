//! Processes of containers as the agent sees them from outside: their standard streams, their
//! ends, signals to them. How they are made is [`crate::launcher`]'s business.

pub mod buffer;
pub mod exit;
pub mod pump;
pub mod reaper;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::termios::Winsize;
use tokio::task::JoinHandle;

use self::buffer::StreamBuffer;
use self::exit::ExitWatch;
use self::pump::{Input, Kind, Output};
use crate::launcher::message::ChildStdio;
use crate::mutex::lock;
use crate::null;
use crate::poll::wait_readable;

/// What can go wrong with a process that runs.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// A pipe for a standard stream could not be made or watched.
    #[error(
        "making the standard streams of a process (is the guest out of descriptors or memory?)"
    )]
    Streams(#[source] std::io::Error),
    /// The signal number is none.
    #[error("signal {0} is not a Linux signal (1 to 64)")]
    BadSignal(u32),
    /// The kernel refused the signal.
    #[error("sending signal {signal} to process {pid}")]
    Signal {
        /// The process.
        pid: i32,
        /// The signal.
        signal: i32,
        /// The kernel's answer.
        #[source]
        error: Errno,
    },
    /// Resizing a process without a terminal.
    #[error("process {0} has no terminal to resize: it was started without tty")]
    NoTerminal(i32),
    /// The kernel refused the size.
    #[error("resizing the terminal of process {pid}")]
    Resize {
        /// The process.
        pid: i32,
        /// The kernel's answer.
        #[source]
        error: Errno,
    },
}

/// How much a process may write ahead of the agent: four times the kernel's default, so that one
/// that writes much is switched away from less often.
const OUTPUT_PIPE: usize = 256 * 1024;

/// Who reads a process's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// The agent, which keeps it until it is acknowledged.
    Kept,
    /// Whoever calls [`Process::take_output`].
    Direct,
}

/// The agent's ends of a process's standard streams, before the pumps run.
#[derive(Debug, Default)]
pub struct Streams {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

impl Streams {
    /// Pipes for a process without a terminal: the agent's ends, and the process's.
    ///
    /// # Errors
    /// If the guest is out of descriptors.
    pub fn pipes(stdin: bool) -> Result<(Self, ChildStdio), ProcessError> {
        let pipe = || {
            rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
                .map_err(|errno| ProcessError::Streams(errno.into()))
        };
        let (stdout, child_stdout) = pipe()?;
        let (stderr, child_stderr) = pipe()?;
        // Refused where pipes have taken too much memory; it works without.
        let _smaller = rustix::pipe::fcntl_setpipe_size(&stdout, OUTPUT_PIPE);
        let (child_stdin, stdin) = if stdin {
            let (read, write) = pipe()?;
            (read, Some(write))
        } else {
            let null = null::open().map_err(|errno| ProcessError::Streams(errno.into()))?;
            (null, None)
        };
        let ours = Self {
            stdin,
            stdout: Some(stdout),
            stderr: Some(stderr),
        };
        let child = ChildStdio {
            stdin: child_stdin,
            stdout: child_stdout,
            stderr: child_stderr,
        };
        Ok((ours, child))
    }
}

/// A running (or ended) process with its streams.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    pidfd: Option<OwnedFd>,
    /// Standard output; with a terminal, everything. Finished from the start if it is read
    /// directly.
    pub stdout: Arc<StreamBuffer>,
    /// Standard error; with a terminal, finished from the start.
    pub stderr: Arc<StreamBuffer>,
    /// Standard input, `None` if there is none or it was closed. Writers take turns.
    pub stdin: tokio::sync::Mutex<Option<Input>>,
    terminal: Option<OwnedFd>,
    direct: Mutex<Vec<Output>>,
    /// Its end.
    pub exit: ExitWatch,
    pumps: Mutex<Vec<JoinHandle<()>>>,
}

impl Process {
    /// Takes the streams of a process that runs, and starts the pumps if its output is to be kept.
    /// `terminal` is the master its launcher sent.
    ///
    /// # Errors
    /// If a descriptor cannot be watched.
    pub fn new(
        pid: i32,
        streams: Streams,
        terminal: Option<OwnedFd>,
        wants_stdin: bool,
        reading: Reading,
        exit: ExitWatch,
    ) -> Result<Self, ProcessError> {
        let duplicate = |fd: &OwnedFd| fd.try_clone().map_err(ProcessError::Streams);
        let output = |fd, kind| Output::new(fd, kind, exit.clone()).map_err(ProcessError::Streams);
        let (outputs, stdin) = match &terminal {
            Some(master) => {
                let stdin = wants_stdin.then(|| duplicate(master)).transpose()?;
                (vec![output(duplicate(master)?, Kind::Terminal)?], stdin)
            }
            None => {
                let ours = [streams.stdout, streams.stderr].into_iter().flatten();
                let outputs = ours
                    .map(|fd| output(fd, Kind::Pipe))
                    .collect::<Result<_, _>>();
                (outputs?, streams.stdin)
            }
        };
        let stdin = stdin
            .map(Input::new)
            .transpose()
            .map_err(ProcessError::Streams)?;
        // ESRCH: it is dead and reaped already; signals to it are then no-ops.
        let pidfd = Pid::from_raw(pid)
            .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
        let mut process = Self {
            pid,
            pidfd,
            stdout: Arc::default(),
            stderr: Arc::default(),
            stdin: tokio::sync::Mutex::new(stdin),
            terminal,
            direct: Mutex::default(),
            exit,
            pumps: Mutex::default(),
        };
        match reading {
            Reading::Kept => process.start_pumps(outputs),
            Reading::Direct => {
                process.stop_pumps();
                process.direct = Mutex::new(outputs);
            }
        }
        Ok(process)
    }

    /// A terminal has one output, for everything; the other buffer is finished then.
    fn start_pumps(&mut self, outputs: Vec<Output>) {
        let mut outputs = outputs.into_iter();
        let pumps = [&self.stdout, &self.stderr]
            .into_iter()
            .filter_map(|buffer| {
                let Some(output) = outputs.next() else {
                    buffer.finish();
                    return None;
                };
                let buffer = Arc::clone(buffer);
                Some(tokio::spawn(
                    async move { pump::pump(output, &buffer).await },
                ))
            });
        self.pumps = Mutex::new(pumps.collect());
    }

    /// Standard output and standard error of a process whose output is read directly: both the
    /// first time, then none. With a terminal there is only the first.
    pub fn take_output(&self) -> (Option<Output>, Option<Output>) {
        let taken = std::mem::take(&mut *lock(&self.direct));
        let mut taken = taken.into_iter();
        (taken.next(), taken.next())
    }

    /// Its number in the guest's root PID namespace.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its pidfd, which stays its own when the pid is reused; `None` if it was gone at once.
    pub fn pidfd(&self) -> Option<&OwnedFd> {
        self.pidfd.as_ref()
    }

    /// Whether it runs; a zombie does not.
    pub fn is_alive(&self) -> bool {
        // If that cannot be found out, it counts as alive.
        let ended = |pidfd| has_ended(pidfd).unwrap_or(false);
        self.pidfd.as_ref().is_some_and(|pidfd| !ended(pidfd))
    }

    /// Sends a signal; to a process that has exited, nothing.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn signal(&self, signal: Signal) -> Result<(), ProcessError> {
        let Some(pidfd) = self.pidfd.as_ref().filter(|_| self.exit.get().is_none()) else {
            return Ok(());
        };
        match rustix::process::pidfd_send_signal(pidfd.as_fd(), signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(ProcessError::Signal {
                pid: self.pid,
                signal: signal.as_raw(),
                error,
            }),
        }
    }

    /// Sets the size of its terminal.
    ///
    /// # Errors
    /// Without a terminal, or when the kernel refuses.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<(), ProcessError> {
        let terminal = self
            .terminal
            .as_ref()
            .ok_or(ProcessError::NoTerminal(self.pid))?;
        let size = Winsize {
            ws_col: columns,
            ws_row: rows,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(terminal, size).map_err(|error| ProcessError::Resize {
            pid: self.pid,
            error,
        })
    }

    /// Whether it has a terminal (whose input has no half-close).
    pub fn has_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// Stops the pumps; output that is not read by now is lost.
    pub fn stop_pumps(&self) {
        let pumps = std::mem::take(&mut *lock(&self.pumps));
        for pump in pumps {
            pump.abort();
        }
        self.stdout.finish();
        self.stderr.finish();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop_pumps();
    }
}

/// Whether a process has ended: its descriptor is readable then (pidfd_open(2)).
///
/// # Errors
/// If the kernel refuses; nothing is known then.
pub fn has_ended(pidfd: &OwnedFd) -> io::Result<bool> {
    match wait_readable(pidfd, Duration::ZERO) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(false),
        Err(error) => Err(error),
    }
}

/// Kills a process that was just made and cannot be kept, by its pid: it is not reaped yet, so the
/// pid is still its own. Pids with a special meaning (kill(2)) and PID 1 are ignored.
pub fn kill_new(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid).filter(|_| pid > 1) {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}

/// The signal of a number from outside.
///
/// # Errors
/// For a number that is not a signal.
pub fn parse_signal(number: u32) -> Result<Signal, ProcessError> {
    let bad = ProcessError::BadSignal(number);
    let raw = i32::try_from(number)
        .ok()
        .filter(|raw| (1..=64).contains(raw));
    let raw = raw.ok_or(bad)?;
    // SAFETY: the number is a signal by the check above; a real-time signal libc reserves for
    // itself can be sent to a container's process, which may run another libc.
    Ok(Signal::from_named_raw(raw).unwrap_or(unsafe { Signal::from_raw_unchecked(raw) }))
}
