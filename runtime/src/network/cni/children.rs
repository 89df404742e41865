//! Ends a plugin with all that it started. A plugin has a process group of its own; what left that
//! group, and whose parents are gone, is known by a variable of its environment, which every child
//! inherits. Plugins are the node's own programs: this is for those that hang, not against attackers.

use std::{
    fs,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal},
};

/// The variable; its value is of one run.
pub(super) const MARK: &str = "BULKHEAD_CNI_RUN";
/// From SIGKILL to the end of all of them.
const DEADLINE: Duration = Duration::from_secs(5);

/// What one run of a plugin started.
#[derive(Debug, Clone)]
pub(super) struct Children {
    /// The plugin, which leads the group; `None` if it ended before it was known.
    pub(super) leader: Option<u32>,
    /// The variable's value.
    pub(super) mark: String,
}

impl Children {
    /// Kills what is in the plugin's group. While the plugin is not reaped, the group is its own.
    pub(super) fn kill_group(&self) {
        let leader = self.leader.and_then(|pid| i32::try_from(pid).ok());
        if let Some(group) = leader.and_then(Pid::from_raw) {
            // Gone already is fine.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    /// Kills all of them, and sees them gone. Blocks, seconds at most.
    pub(super) fn end(&self) {
        self.kill_group();
        let until = Instant::now() + DEADLINE;
        // One that was being born may have been missed.
        while let Some(first) = self.kill_marked() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!("what a CNI plugin started does not end");
                return;
            }
            let left = Timespec::try_from(left).unwrap_or_default();
            // Readable when it has ended; an interrupted wait is a shorter one.
            let _ = poll(&mut [PollFd::new(&first, PollFlags::IN)], Some(&left));
        }
    }

    /// Kills those with the mark; gives the first of them.
    fn kill_marked(&self) -> Option<OwnedFd> {
        let wanted = format!("{MARK}={}", self.mark);
        let mut first = None;
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let name = entry.file_name();
            let pid = name.to_str().and_then(|name| name.parse().ok());
            let Some(pid) = pid.and_then(Pid::from_raw) else {
                continue;
            };
            // Held before it is looked at, so that it is the one that is killed.
            let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
                continue;
            };
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            let marked = environment
                .split(|byte| *byte == 0)
                .any(|variable| variable == wanted.as_bytes());
            if marked && pidfd_send_signal(&process, Signal::KILL).is_ok() {
                first.get_or_insert(process);
            }
        }
        first
    }
}

/// Kills them if the run is given up half-way.
#[derive(Debug)]
pub(super) struct KillOnDrop(pub(super) Option<Children>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(children) = self.0.take() {
            children.kill_group();
            // The rest takes a look at every process: not on the thread of whoever gave up. Without a
            // thread the daemon has other troubles.
            let thread = std::thread::Builder::new().name("cni-kill".to_owned());
            let _ = thread.spawn(move || children.end());
        }
    }
}
