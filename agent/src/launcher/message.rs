//! What the agent and the launcher say to each other. A request is one packet: its descriptors,
//! with the JSON in the first of them (a memory file, so that a long command line fits). The answer
//! is one packet on a socket of its own.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use oci_spec::runtime::{Process, Spec};
use rustix::cmsg_space;
use rustix::io::{IoSlice, IoSliceMut};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};

use super::seccomp::Filter;
use crate::userns::IdMap;

/// The most descriptors one packet carries: payload, answer socket, three streams.
pub const MAX_FDS: usize = 5;
/// The longest answer: a seccomp filter, which the kernel limits to 4096 instructions, as numbers.
pub const MAX_ANSWER: usize = 96 * 1024;
/// The longest message about a failure in one.
const MAX_MESSAGE: usize = 2 * 1024;

/// What the launcher is asked to do.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Build a container and leave its process waiting for the start.
    Create(Box<CreateRequest>),
    /// Run a further process in a container.
    Exec(Box<ExecRequest>),
    /// Start the first process of a PID namespace that containers share, with this in a user
    /// namespace that they share, too.
    PidHolder(Option<IdMap>),
}

/// See [`Request::Create`].
#[derive(Debug, Serialize, Deserialize)]
pub struct CreateRequest {
    /// The container: mounts, devices, what is hidden, process, seccomp profile.
    pub spec: Spec,
    /// Where its layers are stacked.
    pub rootfs: PathBuf,
    /// Below this nobody but the agent makes names.
    pub base: PathBuf,
    /// Its cgroup, as a directory.
    pub cgroup: PathBuf,
    /// Whether that is all it sees of the hierarchy.
    pub cgroup_namespace: bool,
    /// Its PID namespace.
    pub pids: PidNamespace,
    /// Its user namespace, if it is not the agent's.
    pub users: Option<UserNamespace>,
    /// Who its process is, `bulkhead.agent.v1.User` encoded: resolved in the container's root.
    pub user: Vec<u8>,
    /// Whether the process gets a terminal.
    pub tty: bool,
}

/// The PID namespace of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidNamespace {
    /// One of its own.
    New,
    /// The agent's.
    Agents,
    /// The one that is this file.
    Joined(PathBuf),
}

/// A user namespace to join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespace {
    /// The file that is it.
    pub file: PathBuf,
    /// Its ids.
    pub map: IdMap,
}

/// See [`Request::Exec`].
#[derive(Debug, Serialize, Deserialize)]
pub struct ExecRequest {
    /// The container's first process, whose namespaces are joined.
    pub target_pid: i32,
    /// The cgroup to join, as a directory.
    pub cgroup: PathBuf,
    /// The process: arguments, environment, user, capabilities, limits.
    pub process: Process,
    /// The container's seccomp filter, which holds for the exec too.
    pub filter: Option<Filter>,
    /// The ids of its user namespace.
    pub map: Option<IdMap>,
    /// Whether the process gets a terminal.
    pub tty: bool,
}

/// A process's user and groups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// All groups.
    pub gids: Vec<u32>,
}

/// Why a launch failed, as far as callers must tell the cases apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The command is not in the image.
    CommandNotFound,
    /// The command is there and may not be executed.
    NotExecutable,
    /// The specification cannot be carried out.
    InvalidSpec,
    /// The container is not running.
    NotRunning,
    /// Everything else.
    Internal,
}

/// A failed launch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Which case.
    pub kind: FailureKind,
    /// What was attempted, on what, and what came of it.
    pub message: String,
}

impl Failure {
    /// A failure of a kind.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }
}

/// The answer to a request.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// The process is there. For `Create`, the packet carries what belongs to [`Waiting`]: the
    /// pipes and the page; for a terminal, its master comes last.
    ///
    /// [`Waiting`]: super::Waiting
    Started {
        /// Its number in the guest's root PID namespace.
        pid: i32,
        /// For `Create`: who it is, if the image knows.
        user: Option<User>,
        /// For `Create`: its seccomp filter, for execs.
        filter: Option<Filter>,
    },
    /// It is not.
    Failed(Failure),
}

/// A process's own ends of its standard streams.
#[derive(Debug)]
pub struct ChildStdio {
    /// Read by the process.
    pub stdin: OwnedFd,
    /// Written by it.
    pub stdout: OwnedFd,
    /// Written by it.
    pub stderr: OwnedFd,
}

/// Sends one packet with descriptors.
///
/// # Errors
/// The kernel's answer; EPIPE when the other side is gone.
pub fn send(socket: impl AsFd, payload: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "too many descriptors",
        ));
    }
    let sent = rustix::net::sendmsg(
        socket,
        &[IoSlice::new(payload)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    if sent == payload.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

/// Receives one packet and its descriptors; an empty packet without descriptors is the end.
///
/// # Errors
/// The kernel's answer; WouldBlock on a non-blocking socket; InvalidData for a packet longer than
/// the buffer.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(buffer)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received
        .flags
        .intersects(rustix::net::ReturnFlags::TRUNC | rustix::net::ReturnFlags::CTRUNC)
    {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "packet does not fit",
        ));
    }
    Ok((received.bytes, fds))
}

/// The bytes of an answer; a message too long for one packet is cut.
pub fn encode_answer(answer: &Answer) -> Vec<u8> {
    let encode = |answer: &Answer| serde_json::to_vec(answer).unwrap_or_default();
    let bytes = encode(answer);
    if bytes.len() <= MAX_ANSWER {
        return bytes;
    }
    match answer {
        Answer::Failed(failure) => {
            let message = failure
                .message
                .chars()
                .take(MAX_MESSAGE)
                .collect::<String>();
            encode(&Answer::Failed(Failure {
                kind: failure.kind,
                message,
            }))
        }
        Answer::Started { .. } => bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_failure_still_fits_one_packet() {
        let failure = Failure::new(FailureKind::Internal, "\u{1}".repeat(100_000));
        let bytes = encode_answer(&Answer::Failed(failure));
        assert!(bytes.len() <= MAX_ANSWER);
        let Answer::Failed(failure) = serde_json::from_slice(&bytes).unwrap() else {
            panic!()
        };
        assert_eq!(failure.kind, FailureKind::Internal);
    }
}
