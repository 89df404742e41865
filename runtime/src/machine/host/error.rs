//! What can go wrong with starting an agent on the host.

use std::path::PathBuf;

use tonic::Code;

use crate::error::{Grpc, io_code};

/// A failure to start a pod's agent on the host.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The process does not start.
    #[error("cannot start the agent {binary} (host.agent)")]
    Spawn {
        /// The program.
        binary: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It does not take its configuration.
    #[error("the agent did not take its configuration")]
    Configure {
        /// Why.
        source: std::io::Error,
    },
    /// It is not taken in time.
    #[error("the agent did not take its configuration within {seconds} s")]
    Deadline {
        /// How long it had.
        seconds: u64,
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

impl Grpc for HostError {
    fn code(&self) -> Code {
        match self {
            Self::Spawn { source, .. } => match source.kind() {
                std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied => {
                    Code::FailedPrecondition
                }
                _ => io_code(source),
            },
            Self::Configure { .. } => Code::Internal,
            Self::Deadline { .. } => Code::DeadlineExceeded,
            Self::Os { source, .. } => io_code(source),
        }
    }
}
