//! How a process ended, and how others learn of it.

use rustix::process::Signal;
use tokio::sync::watch;

use crate::clock;

/// What waitpid said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It called exit with this code.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
}

/// What a death by a signal adds to its number (POSIX, sh, exit status).
const SIGNAL_BASE: i32 = 128;

impl ExitStatus {
    /// 0 to 255 as a shell counts: a death by signal is 128 + the signal.
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code & 0xff,
            Self::Signal(signal) => SIGNAL_BASE + signal,
        }
    }

    /// Whether SIGKILL ended it, or a command of the shell that it was.
    pub fn is_kill(self) -> bool {
        self.code() == SIGNAL_BASE + Signal::KILL.as_raw()
    }
}

/// The end of a process, as the daemon hears of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Code or signal.
    pub status: ExitStatus,
    /// The OOM killer ended it.
    pub oom_killed: bool,
    /// CLOCK_REALTIME when it was reaped.
    pub finished_at_unix_ns: i64,
}

impl Exit {
    /// An end that was no memory kill, reaped now.
    pub fn now(status: ExitStatus, oom_killed: bool) -> Self {
        Self {
            status,
            oom_killed,
            finished_at_unix_ns: clock::realtime_ns(),
        }
    }

    /// Its [`ExitStatus::code`].
    pub fn code(&self) -> i32 {
        self.status.code()
    }

    /// The signal that ended it, 0 if none did.
    pub fn signal(&self) -> u32 {
        match self.status {
            ExitStatus::Code(_) => 0,
            ExitStatus::Signal(signal) => signal.try_into().unwrap_or(0),
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    // Two steps: the process is dead (pumps drain), and its end is fully known (OOM or not).
    dead: bool,
    exit: Option<Exit>,
}

/// The side that announces an end.
#[derive(Debug)]
pub struct ExitSender(watch::Sender<State>);

/// The side that waits for it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ExitWatch(watch::Receiver<State>);

/// A pair for one process.
pub fn channel() -> (ExitSender, ExitWatch) {
    let (sender, receiver) = watch::channel(State::default());
    (ExitSender(sender), ExitWatch(receiver))
}

impl ExitSender {
    /// The process is dead; its record follows.
    pub fn dead(&self) {
        self.0.send_modify(|state| state.dead = true);
    }

    /// The full record.
    pub fn exited(&self, exit: Exit) {
        self.0.send_modify(|state| {
            *state = State {
                dead: true,
                exit: Some(exit),
            }
        });
    }
}

impl ExitWatch {
    /// The record, if the process has ended.
    pub fn get(&self) -> Option<Exit> {
        self.0.borrow().exit
    }

    /// Returns once the process is dead (or its watcher is gone).
    pub async fn wait_raw(&mut self) {
        let _ = self.0.wait_for(|state| state.dead).await;
    }

    /// Waits for the record; `None` if the process was given up without one.
    pub async fn wait(&mut self) -> Option<Exit> {
        self.0
            .wait_for(|state| state.exit.is_some())
            .await
            .ok()
            .and_then(|state| state.exit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sigkill_is_recognised_as_signal_and_as_shell_exit_code() {
        assert!(ExitStatus::Signal(9).is_kill());
        assert!(ExitStatus::Code(137).is_kill());
        for other in [
            ExitStatus::Signal(15),
            ExitStatus::Code(9),
            ExitStatus::Code(143),
            ExitStatus::Code(0),
        ] {
            assert!(!other.is_kill(), "{other:?}");
        }
        assert_eq!(ExitStatus::Signal(9).code(), 137);
    }
}
