//! The messages between the agent and the launcher. A request is one packet: its descriptors, with
//! the JSON in the first of them (a memory file, so that a long command line fits). The answer is
//! one on a socket of its own: the number of the process that was started (0 for none), and JSON in
//! the same way. Processes and namespaces to join are passed as descriptors: a pid may be reused by
//! the time it is read.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use oci_spec::runtime::{Process, Spec};
use rustix::cmsg_space;
use rustix::fs::MemfdFlags;
use rustix::io::{IoSlice, IoSliceMut};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::seccomp::Filter;
use crate::userns::IdMap;

/// The most descriptors one packet carries: payload, answer socket, three streams, two namespaces.
pub const MAX_FDS: usize = 7;

/// A request to the launcher. The packet has, in this order: the payload, the socket for the
/// answer, the three standard streams if [`Request::has_streams`], and [`Request::handles`]
/// processes and namespaces.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Build a container and leave its process waiting for the start.
    Create(Box<CreateRequest>),
    /// Run a further process in a container.
    Exec(Box<ExecRequest>),
    /// Start the pause process: the first of a PID namespace that containers share, and with a map
    /// also of a user namespace that they share.
    Pause(Option<IdMap>),
}

impl Request {
    /// Whether the packet has the three standard streams after the payload and the answer's socket.
    pub fn has_streams(&self) -> bool {
        match self {
            Self::Create(create) => !create.tty,
            Self::Exec(exec) => !exec.tty,
            Self::Pause(_) => false,
        }
    }

    /// How many processes and namespaces come with it: those to join of a container that is made, the
    /// PID namespace first; the first process of a container for an exec in it, as a pidfd.
    pub fn handles(&self) -> usize {
        match self {
            Self::Create(create) => {
                usize::from(create.pids == PidNamespace::Joined)
                    + usize::from(create.users.is_some())
            }
            Self::Exec(_) => 1,
            Self::Pause(_) => 0,
        }
    }
}

/// See [`Request::Create`].
#[derive(Debug, Serialize, Deserialize)]
pub struct CreateRequest {
    /// The container: mounts, devices, what is hidden, process, seccomp profile.
    pub spec: Spec,
    /// Where its layers are stacked.
    pub rootfs: PathBuf,
    /// Only the agent creates names below this.
    pub base: PathBuf,
    /// Its cgroup, as a directory.
    pub cgroup: PathBuf,
    /// Whether that is all it sees of the hierarchy.
    pub cgroup_namespace: bool,
    /// Its PID namespace.
    pub pids: PidNamespace,
    /// The ids of its user namespace, which comes with the packet, if it is not the agent's.
    pub users: Option<IdMap>,
    /// Who its process is, `bulkhead.agent.v1.User` encoded: resolved in the container's root.
    pub user: Vec<u8>,
    /// Whether the process gets a terminal.
    pub tty: bool,
}

/// The PID namespace of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidNamespace {
    /// One of its own.
    New,
    /// The agent's.
    Agents,
    /// The one that comes with the packet.
    Joined,
}

/// See [`Request::Exec`].
#[derive(Debug, Serialize, Deserialize)]
pub struct ExecRequest {
    /// The number of the container's first process, to find its cgroup below the container's own. The
    /// process itself, whose namespaces are joined, comes with the packet.
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

/// Why a launch failed, as far as callers distinguish.
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
    /// Anything else.
    Internal,
}

/// A failed launch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The kind.
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
pub enum Response {
    /// The process was started. For `Create`, the packet carries what belongs to [`Waiting`]: the
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
    /// No process was started.
    Failed(Failure),
}

/// A response with the descriptors that its packet carries besides.
pub type Reply = (Response, Vec<OwnedFd>);

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
/// If the kernel refuses; EPIPE when the other side is gone.
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
/// If the kernel refuses; WouldBlock on a non-blocking socket; InvalidData for a packet longer than
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

/// Serializes a message into a memory file, for the first descriptor of a packet.
///
/// # Errors
/// If memory is short.
pub fn pack(what: &impl Serialize) -> io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create(c"message", MemfdFlags::CLOEXEC)?;
    let bytes = serde_json::to_vec(what)?;
    File::from(file.try_clone()?).write_all(&bytes)?;
    Ok(file)
}

/// Deserializes a message from a memory file.
///
/// # Errors
/// If it cannot be read, or is another message.
pub fn unpack<T: DeserializeOwned>(file: OwnedFd) -> io::Result<T> {
    let (mut file, mut bytes) = (File::from(file), Vec::new());
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_of_any_length_arrives() {
        let gids: Vec<u32> = (0..65_536).map(|gid| 4_294_900_000 + gid).collect();
        let answer = Response::Started {
            pid: 7,
            user: Some(User {
                uid: 1,
                gid: 2,
                gids: gids.clone(),
            }),
            filter: None,
        };
        let Response::Started { user, .. } = unpack(pack(&answer).unwrap()).unwrap() else {
            panic!("another answer");
        };
        assert_eq!(user.unwrap().gids, gids);
    }
}
