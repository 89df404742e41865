//! What can go wrong with a VMM.

use std::path::PathBuf;

use bulkhead_contract::vmm::ErrorKind;
use tonic::Code;

use crate::error::{Grpc, io_code};

/// A failure of a pod's VMM, or in talking to it.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// Something the VMM needs does not open.
    #[error("cannot open {what} {path}: {hint}")]
    Open {
        /// What it is for.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What to do.
        hint: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The process does not start.
    #[error("cannot start the VMM {binary} (vmm.binary)")]
    Spawn {
        /// The program.
        binary: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It started and gave up.
    #[error("the VMM refused to start ({kind}): {message}")]
    Refused {
        /// The VMM's error kind.
        kind: ErrorKind,
        /// Its words.
        message: String,
    },
    /// It said something that is not in the contract.
    #[error("the VMM broke the protocol while {during}: {what}")]
    Protocol {
        /// What was going on.
        during: &'static str,
        /// What was wrong.
        what: String,
    },
    /// It did not answer in time.
    #[error("the VMM did not answer within {seconds} s while {during}")]
    Deadline {
        /// What was going on.
        during: &'static str,
        /// How long it had.
        seconds: u64,
    },
    /// The control socket fails: the VMM has ended or is ending.
    #[error("cannot {action} over the VMM's control socket {path}")]
    Socket {
        /// What was attempted.
        action: &'static str,
        /// The socket.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It answered a request with an error.
    #[error("the VMM could not {action} ({kind}): {message}")]
    Request {
        /// What was asked.
        action: &'static str,
        /// The VMM's error kind.
        kind: ErrorKind,
        /// Its words.
        message: String,
    },
    /// The pod cannot be described to a VMM.
    #[error("cannot write the VMM's configuration: {key}: {what}")]
    Configuration {
        /// The key (docs/vmm-api.md).
        key: &'static str,
        /// What is wrong with its value.
        what: String,
    },
    /// An operating-system call failed.
    #[error("cannot {action}")]
    Os {
        /// What was attempted.
        action: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

impl Grpc for VmmError {
    fn code(&self) -> Code {
        match self {
            Self::Open { source, .. } | Self::Spawn { source, .. } => match source.kind() {
                std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied => {
                    Code::FailedPrecondition
                }
                _ => io_code(source),
            },
            Self::Os { source, .. } => io_code(source),
            Self::Deadline { .. } => Code::DeadlineExceeded,
            Self::Socket { .. } => Code::Unavailable,
            Self::Request { kind, .. } => match kind {
                ErrorKind::NotFound => Code::NotFound,
                ErrorKind::Exists => Code::AlreadyExists,
                ErrorKind::WrongState => Code::FailedPrecondition,
                ErrorKind::NoSlot => Code::ResourceExhausted,
                ErrorKind::Unsupported => Code::Unimplemented,
                ErrorKind::BadRequest
                | ErrorKind::Io
                | ErrorKind::Internal
                | ErrorKind::Unknown => Code::Internal,
            },
            Self::Refused { .. } | Self::Configuration { .. } => Code::FailedPrecondition,
            Self::Protocol { .. } => Code::Internal,
        }
    }
}
