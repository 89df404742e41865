//! The namespaces that the containers of a pod share, as the agent has them: by descriptor. Containers
//! can end the process that was their first (reboot(2) in its PID namespace, ptrace(2)), and its
//! number may then be anybody's. Making that process is the launcher's business.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

/// The first process of the pod's shared PID namespace, and what it keeps.
#[derive(Debug)]
pub struct Holder {
    process: OwnedFd,
    pids: OwnedFd,
    users: OwnedFd,
}

impl Holder {
    /// Takes the namespaces of a process that the launcher has just made.
    ///
    /// # Errors
    /// The kernel's; ESRCH if it has ended meanwhile.
    pub fn of(pid: i32) -> io::Result<Self> {
        let number = Pid::from_raw(pid).ok_or(Errno::SRCH)?;
        let process = rustix::process::pidfd_open(number, PidfdFlags::empty())?;
        let pids = namespace(pid, &process, "pid")?;
        let users = namespace(pid, &process, "user")?;
        Ok(Self {
            process,
            pids,
            users,
        })
    }

    /// Whether it still runs: no process can begin in a PID namespace whose first has ended.
    pub fn is_alive(&self) -> bool {
        is_alive(&self.process)
    }

    /// The PID namespace.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn pids(&self) -> io::Result<OwnedFd> {
        self.pids.try_clone()
    }

    /// The user namespace.
    pub fn users(&self) -> BorrowedFd<'_> {
        self.users.as_fd()
    }

    /// A file that is the user namespace as long as `self` is there, for this process only.
    pub fn users_file(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.users.as_raw_fd()).into()
    }
}

/// A namespace of a process that `process` is, and that its number may no longer be.
///
/// # Errors
/// The kernel's; ESRCH if the process has ended.
pub fn namespace(pid: i32, process: &OwnedFd, kind: &str) -> io::Result<OwnedFd> {
    let file = File::open(format!("/proc/{pid}/ns/{kind}"))?;
    // As long as it was not reaped its number was not another's.
    if !is_alive(process) {
        return Err(Errno::SRCH.into());
    }
    Ok(file.into())
}

/// Whether a process runs (pidfd_open(2): its descriptor is readable when it has ended).
fn is_alive(process: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(process, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    matches!(rustix::event::poll(&mut polled, Some(&now)), Ok(0))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn nothing_is_taken_of_a_process_that_has_ended() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id().try_into().unwrap();
        let holder = Holder::of(pid).unwrap();
        assert!(holder.is_alive());
        assert!(holder.pids().is_ok() && holder.users_file().exists());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!holder.is_alive());
        // Its number may be anybody's now; here it is that of this very process.
        let own = std::process::id().try_into().unwrap();
        let error = namespace(own, &holder.process, "pid").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::SRCH.raw_os_error()));
        assert!(Holder::of(pid).is_err());
    }
}
