//! The child process, with or without namespaces of its own.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bulkhead_contract::vmm::Jail;
use rustix::process::{Pid, Resource, Signal, WaitOptions, kill_process, waitpid};

use super::error::{Attempted, JailError, check};
use super::privileges;

/// How long the child may take until it reports: it loads a kernel in this time.
const START_LIMIT: Duration = Duration::from_secs(60);
/// A report is one short JSON document.
const MAX_REPORT: u64 = 64 * 1024;

/// Which side of a fork this is.
#[derive(Debug)]
pub enum Child {
    /// The caller: the child's process id, and what it reported (nothing when it died).
    Outer {
        /// As this PID namespace sees it.
        pid: i32,
        /// Its report.
        report: Vec<u8>,
    },
    /// The child: where to report.
    Inner(UnixStream),
}

/// Makes the child. In the caller this returns when the child has reported and closed its end,
/// or died. With `all_ids` its user namespace has every id, each as it is outside, as a file
/// server must know the owners of what it serves; else it has none but the VMM's own.
///
/// # Errors
/// When the child cannot be made, or does not report in time; it is dead then.
pub fn fork(jail: Option<&Jail>, all_ids: bool) -> Result<Child, JailError> {
    let pair = UnixStream::pair();
    let (mut outer, mut inner) = pair.or_failed("a socket pair")?;
    if let Some(jail) = jail {
        prepare_root(jail)?;
        // Here, as a limit may be raised by the host's root alone.
        privileges::limit(Resource::Nofile, jail.max_files, "limiting descriptors")?;
        // The groups of the daemon are not the VMM's, and the new namespace may not change them.
        // SAFETY: an empty list needs no pointer.
        let result = unsafe { libc::setgroups(0, std::ptr::null()) };
        check(result, "dropping groups")?;
    }
    let namespaces = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS;
    let flags = libc::SIGCHLD | if jail.is_some() { namespaces } else { 0 };
    // SAFETY: without a stack of its own this is a fork; the process has one thread, so the
    // child may do all that a process may.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match i32::try_from(pid) {
        Ok(0) => {
            drop(outer);
            let mut go = [0u8; 1];
            inner
                .read_exact(&mut go)
                .or_failed("waiting for the id maps")?;
            Ok(Child::Inner(inner))
        }
        Ok(pid) if pid > 0 => {
            drop(inner);
            let report = lead(pid, jail, all_ids, &mut outer);
            if report.is_err() {
                end(pid);
            }
            Ok(Child::Outer {
                pid,
                report: report?,
            })
        }
        _ => Err(JailError::Namespaces(io::Error::last_os_error())),
    }
}

/// Maps the child's ids, lets it continue and reads its report.
fn lead(
    pid: i32,
    jail: Option<&Jail>,
    all_ids: bool,
    child: &mut UnixStream,
) -> Result<Vec<u8>, JailError> {
    if let Some(jail) = jail {
        // In this order: a group map of an unprivileged writer needs setgroups denied, and so
        // the VMM can never gain groups.
        write_proc(pid, "setgroups", "deny")?;
        let map = |id: u32| match all_ids {
            true => format!("0 0 {}", u32::MAX),
            false => format!("0 {id} 1"),
        };
        write_proc(pid, "uid_map", &map(jail.uid))?;
        write_proc(pid, "gid_map", &map(jail.gid))?;
    }
    child
        .write_all(&[1])
        .or_failed("letting the child continue")?;
    child
        .set_read_timeout(Some(START_LIMIT))
        .or_failed("setting a time limit")?;
    let mut report = Vec::new();
    child
        .take(MAX_REPORT)
        .read_to_end(&mut report)
        .or_failed("waiting for the child's report")?;
    Ok(report)
}

fn write_proc(pid: i32, name: &str, value: &str) -> Result<(), JailError> {
    let path = format!("/proc/{pid}/{name}");
    OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .or_failed(&format!("writing {path}"))
}

/// Ends the child for good.
fn end(pid: i32) {
    // Its process id is the child's until it is waited for.
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, Signal::KILL);
        let _ = waitpid(Some(pid), WaitOptions::empty());
    }
}

/// Gives the pod's directory to the VMM's user and makes it the working directory, which the
/// child finds in its own mount namespace, where a descriptor would still be in this one.
fn prepare_root(jail: &Jail) -> Result<(), JailError> {
    let shown = jail.root.display();
    let meta = std::fs::symlink_metadata(&jail.root).or_failed(&format!("{shown}"))?;
    if !meta.is_dir() {
        let source = io::ErrorKind::NotADirectory.into();
        return Err(JailError::Io {
            attempted: format!("{shown}"),
            source,
        });
    }
    if (meta.uid(), meta.gid()) != (jail.uid, jail.gid) {
        std::os::unix::fs::lchown(&jail.root, Some(jail.uid), Some(jail.gid))
            .or_failed(&format!("giving {shown} to {}:{}", jail.uid, jail.gid))?;
    }
    std::env::set_current_dir(&jail.root).or_failed(&format!("entering {shown}"))
}
