//! The namespaces that the containers of a pod share, by descriptor. Containers can end the pause
//! process, which was their first (reboot(2) in its PID namespace, ptrace(2)), and its number may then
//! be reused. Making that process is the launcher's business (`launcher::pause`).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use crate::process::has_ended;

/// The pod's pause process, and the namespaces that live as long as it does.
#[derive(Debug)]
pub struct SharedNamespaces {
    process: OwnedFd,
    pids: OwnedFd,
    users: OwnedFd,
}

impl SharedNamespaces {
    /// Takes the namespaces of a process that the launcher has just made.
    ///
    /// # Errors
    /// If the kernel refuses; ESRCH if it has ended meanwhile.
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

    /// Whether it has ended: no process can begin in a PID namespace whose first has.
    ///
    /// # Errors
    /// If the kernel refuses; nothing is known then.
    pub fn has_ended(&self) -> io::Result<bool> {
        has_ended(&self.process)
    }

    /// The PID namespace.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub fn pids(&self) -> io::Result<OwnedFd> {
        self.pids.try_clone()
    }

    /// The user namespace.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub fn users(&self) -> io::Result<OwnedFd> {
        self.users.try_clone()
    }
}

/// Opens a namespace of the process behind `process`; `pid` is its number, which may have been reused.
///
/// # Errors
/// If the kernel refuses; ESRCH if the process has ended.
pub fn namespace(pid: i32, process: &OwnedFd, kind: &str) -> io::Result<OwnedFd> {
    let file = File::open(format!("/proc/{pid}/ns/{kind}"))?;
    // Still alive, so the pid was its own when the file was opened.
    if has_ended(process)? {
        return Err(Errno::SRCH.into());
    }
    Ok(file.into())
}

/// A path to an open descriptor, for this process and as long as it is open.
pub fn path_of(open: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", open.as_raw_fd()).into()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn namespaces_of_an_ended_process_are_refused() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id().try_into().unwrap();
        let shared = SharedNamespaces::of(pid).unwrap();
        assert!(!shared.has_ended().unwrap());
        assert!(shared.pids().is_ok() && path_of(&shared.users().unwrap()).exists());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(shared.has_ended().unwrap());
        // Its pid may be reused now; here by this very process.
        let own = std::process::id().try_into().unwrap();
        let error = namespace(own, &shared.process, "pid").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::SRCH.raw_os_error()));
        assert!(SharedNamespaces::of(pid).is_err());
    }
}
