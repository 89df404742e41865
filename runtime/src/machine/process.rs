//! A VMM process, held by a pidfd: it cannot be mistaken for a later process with its pid, it can
//! be waited for without being our child (after a restart of the daemon it is not), and killed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::fd::{AsFd as _, OwnedFd},
    sync::Mutex,
};

use bulkhead_common::lock;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{
        Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
    },
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::records::VmmProcess;

/// A process that runs or has ended.
#[derive(Debug)]
pub struct Process {
    identity: VmmProcess,
    pidfd: AsyncFd<OwnedFd>,
    /// Held from the choice of an `oom_score_adj` until it is written: the last one chosen stays.
    scoring: Mutex<()>,
}

impl Process {
    /// A process just made: `pid` is our descendant and not reaped, so it is the one meant.
    pub fn adopt(pid: i32) -> io::Result<Self> {
        let pidfd = open(pid)?.ok_or(io::ErrorKind::NotFound)?;
        let identity = VmmProcess {
            pid,
            start_time: start_time(pid)?.ok_or(io::ErrorKind::NotFound)?,
            boot: boot_id()?,
        };
        Self::new(identity, pidfd)
    }

    /// The process a record names, if it is still there.
    pub fn find(identity: VmmProcess) -> io::Result<Option<Self>> {
        if identity.boot != boot_id()? {
            return Ok(None);
        }
        let Some(pidfd) = open(identity.pid)? else {
            return Ok(None);
        };
        // Read after the pidfd is open: from then on the pid cannot change hands unseen.
        if start_time(identity.pid)? != Some(identity.start_time) {
            return Ok(None);
        }
        Ok(Some(Self::new(identity, pidfd)?))
    }

    fn new(identity: VmmProcess, pidfd: OwnedFd) -> io::Result<Self> {
        // tokio's other constructor is unsafe, for types whose `AsRawFd` may answer differently
        // each time; `OwnedFd` gives the same descriptor for as long as it lives.
        #[allow(deprecated)]
        let pidfd = AsyncFd::with_interest(pidfd, Interest::READABLE)?;
        Ok(Self {
            identity,
            pidfd,
            scoring: Mutex::default(),
        })
    }

    /// What identifies it.
    pub fn identity(&self) -> VmmProcess {
        self.identity
    }

    /// Its pidfd once more.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.pidfd.get_ref().try_clone()
    }

    /// Waits until it has ended, and reaps it if it is ours.
    pub async fn wait(&self) -> io::Result<()> {
        // pidfd_open(2): readable when the process has terminated. The readiness is not cleared,
        // so every later wait returns at once.
        let _ended = self.pidfd.readable().await?;
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
            // Not our child (another daemon's) or reaped before.
            Ok(_) | Err(rustix::io::Errno::CHILD) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Sets its `oom_score_adj` to what `choose` says, -1000 to 1000, and gives that; one set at a
    /// time.
    ///
    /// # Errors
    /// If it has ended, or the kernel refuses.
    pub fn set_oom_score(&self, choose: impl FnOnce() -> i32) -> io::Result<i32> {
        let _one = lock(&self.scoring);
        let score = choose();
        let path = format!("/proc/{}/oom_score_adj", self.identity.pid);
        let mut file = OpenOptions::new().write(true).open(path)?;
        // Opened while it was there, the file is this process's and not a later one's.
        let mut fds = [PollFd::new(self.pidfd.get_ref(), PollFlags::IN)];
        if poll(&mut fds, Some(&Timespec::default()))? > 0 {
            return Err(rustix::io::Errno::SRCH.into());
        }
        file.write_all(score.to_string().as_bytes())?;
        Ok(score)
    }

    /// Sends SIGKILL; one that has ended is no error.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

fn open(pid: i32) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = Pid::from_raw(pid) else {
        return Ok(None);
    };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => Ok(Some(fd)),
        // EINVAL: nobody's number any more, but still that of a session the process has led.
        Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// When a process began; none if nobody has the number any more.
fn start_time(pid: i32) -> io::Result<Option<u64>> {
    match File::open(format!("/proc/{pid}/stat")) {
        Ok(stat) => read_start_time(stat),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// The same from its /proc/PID/stat, open already: the kernel gives ESRCH to who reads it when the
/// process has been reaped meanwhile.
fn read_start_time(mut stat: File) -> io::Result<Option<u64>> {
    let mut text = String::new();
    match stat.read_to_string(&mut text) {
        Ok(_) => {}
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
            return Ok(None);
        }
        Err(e) => return Err(e),
    }
    let time = parse_start_time(&text).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "no start time in /proc/PID/stat",
        )
    })?;
    Ok(Some(time))
}

/// Field 22 of /proc/PID/stat. The second, the name, is in parentheses and may hold anything.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    // The next field is the third.
    rest.split_whitespace().nth(22 - 3)?.parse().ok()
}

/// Which boot of the host this is: pids and start times begin anew with each.
fn boot_id() -> io::Result<[u8; 16]> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let hex: String = text.trim().chars().filter(|c| *c != '-').collect();
    let value = u128::from_str_radix(&hex, 16)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the boot id is not a UUID"))?;
    Ok(value.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_is_no_obstacle() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20";
        assert_eq!(parse_start_time(stat), Some(4242));
        assert_eq!(parse_start_time("7 (x) S 1"), None);
    }

    #[test]
    fn a_process_reaped_while_it_is_looked_at_is_gone() {
        let mut child = std::process::Command::new("/bin/sleep")
            .arg("600")
            .spawn()
            .unwrap();
        let stat = || File::open(format!("/proc/{}/stat", child.id())).unwrap();
        let (there, gone) = (stat(), stat());
        assert!(read_start_time(there).unwrap().is_some());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(read_start_time(gone).unwrap(), None);
        let pid = i32::try_from(child.id()).unwrap();
        assert_eq!(start_time(pid).unwrap(), None);
    }

    #[tokio::test]
    async fn a_process_is_found_killed_and_then_gone() {
        let mut child = std::process::Command::new("/bin/sleep")
            .arg("600")
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let process = Process::adopt(pid).unwrap();
        let again = Process::find(process.identity()).unwrap().unwrap();
        let other = VmmProcess {
            start_time: 1,
            ..process.identity()
        };
        assert!(Process::find(other).unwrap().is_none());
        let rebooted = VmmProcess {
            boot: [0; 16],
            ..process.identity()
        };
        assert!(Process::find(rebooted).unwrap().is_none());

        let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        let raised = score.trim().parse::<i32>().unwrap() + 7;
        assert_eq!(again.set_oom_score(|| raised).unwrap(), raised);
        let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        assert_eq!(score.trim(), raised.to_string());

        again.kill().unwrap();
        tokio::time::timeout(Duration::from_secs(10), process.wait())
            .await
            .unwrap()
            .unwrap();
        again.wait().await.unwrap();
        again.kill().unwrap();
        assert!(Process::find(process.identity()).unwrap().is_none());
        assert!(process.set_oom_score(|| raised).is_err());
        let _reaped = child.wait();
    }
}
