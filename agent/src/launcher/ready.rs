//! How a container's process reports that it is in its container: one packet with who it is and the
//! master of its terminal, and its groups in packets of their own. The reader does not trust it:
//! others in a shared PID namespace may have had the process in their hands.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::message::{self, User};
use super::pty;
use crate::poll::wait_readable;

/// How long the container's process may take to report; until then it touches nothing but the
/// container's files.
pub(super) const DEADLINE: Duration = Duration::from_secs(50);
/// The longest report, without the groups.
const MAX_REPORT: usize = 1024;
/// How many groups a process can have (linux/limits.h, NGROUPS_MAX).
const MAX_GROUPS: usize = 65_536;
/// How many of them one packet takes.
const GROUPS: usize = 4096;

/// The report as it is sent.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Report {
    user: Option<User>,
    groups: usize,
}

/// What a process reports.
#[derive(Debug)]
pub struct Ready {
    /// Who it is going to be, if it is for it to know.
    pub user: Option<User>,
    /// The master of its terminal.
    pub terminal: Option<OwnedFd>,
}

/// Sends the report. Groups beyond the kernel's limit are dropped; setgroups(2) refuses them at the
/// start.
///
/// # Errors
/// If the reader is gone.
pub fn send(
    channel: &OwnedFd,
    mut user: Option<User>,
    terminal: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut groups = user
        .as_mut()
        .map(|user| std::mem::take(&mut user.gids))
        .unwrap_or_default();
    groups.truncate(MAX_GROUPS);
    let report = Report {
        user,
        groups: groups.len(),
    };
    let bytes = serde_json::to_vec(&report)?;
    let fds: Vec<_> = terminal.into_iter().collect();
    message::send(channel, &bytes, &fds)?;
    for some in groups.chunks(GROUPS) {
        let bytes: Vec<u8> = some.iter().flat_map(|group| group.to_ne_bytes()).collect();
        message::send(channel, &bytes, &[])?;
    }
    Ok(())
}

/// Receives the report; `None` if the process has ended without one.
///
/// # Errors
/// TimedOut after `DEADLINE`, InvalidData for anything else than a report.
pub fn receive(channel: &OwnedFd) -> io::Result<Option<Ready>> {
    wait_readable(channel, DEADLINE)?;
    let mut bytes = [0; MAX_REPORT];
    let (length, fds) = message::receive(channel, &mut bytes)?;
    if length == 0 {
        return Ok(None);
    }
    let report: Report = serde_json::from_slice(bytes.get(..length).unwrap_or_default())?;
    let groups = receive_groups(channel, report.groups)?;
    let mut user = report.user;
    if let Some(user) = &mut user {
        user.gids = groups;
    }
    let terminal = fds.into_iter().next();
    if let Some(terminal) = &terminal {
        pty::check_master(terminal)?;
    }
    Ok(Some(Ready { user, terminal }))
}

fn receive_groups(channel: &OwnedFd, count: usize) -> io::Result<Vec<u32>> {
    let wrong = || io::Error::from(io::ErrorKind::InvalidData);
    if count > MAX_GROUPS {
        return Err(wrong());
    }
    let mut groups = Vec::with_capacity(count);
    let mut packet = vec![0; GROUPS * size_of::<u32>()];
    while groups.len() < count {
        wait_readable(channel, DEADLINE)?;
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

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    use super::*;

    fn channel() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC;
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
    }

    #[test]
    fn a_report_carries_as_many_groups_as_there_can_be() {
        for count in [0, 1, GROUPS, GROUPS + 1, MAX_GROUPS, MAX_GROUPS + 1] {
            let (ours, theirs) = channel();
            let gids: Vec<u32> = (0..u32::try_from(count).unwrap()).collect();
            let user = User {
                uid: 1,
                gid: 2,
                gids: gids.clone(),
            };
            // More packets than a socket holds: somebody must take them meanwhile.
            let sent = std::thread::spawn(move || send(&theirs, Some(user), None));
            let ready = receive(&ours).unwrap().unwrap();
            assert!(sent.join().unwrap().is_ok() && ready.terminal.is_none());
            let received = ready.user.unwrap().gids;
            assert_eq!(received, gids[..count.min(MAX_GROUPS)], "{count}");
        }
    }

    #[test]
    fn a_malformed_report_is_refused() {
        let report = |groups: usize| {
            format!(r#"{{"user":{{"uid":1,"gid":2,"gids":[]}},"groups":{groups}}}"#)
        };
        let cases: [(String, &[&[u8]]); 6] = [
            ("{".to_owned(), &[]),
            (report(MAX_GROUPS + 1), &[]),
            (report(usize::MAX), &[]),
            // Half a number, nothing, and more than was announced.
            (report(1), &[&[0; 3]]),
            (report(1), &[]),
            (report(1), &[&[0; 8]]),
        ];
        for (report, packets) in cases {
            let (ours, theirs) = channel();
            message::send(&theirs, report.as_bytes(), &[]).unwrap();
            for packet in packets {
                message::send(&theirs, packet, &[]).unwrap();
            }
            drop(theirs);
            assert!(receive(&ours).is_err(), "{report} {packets:?}");
        }
    }
}
