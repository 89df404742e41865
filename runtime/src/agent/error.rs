//! What can go wrong with an agent.

use std::path::PathBuf;

use tonic::Code;

use crate::error::{Grpc, chain};

/// A failure of a pod's agent, or in talking to it.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// There is no connection to it.
    #[error(
        "cannot reach the pod's agent through {path}; its log (`bulkhead console POD`) may say why"
    )]
    Connect {
        /// The VMM's vsock socket, or the agent's own on the host.
        path: PathBuf,
        /// Why.
        source: tonic::transport::Error,
    },
    /// It refused or failed.
    #[error("the agent could not {action}: {} ({})", .status.message(), .status.code())]
    Call {
        /// What was asked.
        action: &'static str,
        /// Its answer.
        status: Box<tonic::Status>,
    },
    /// It did not answer in time.
    #[error("the agent did not {action} within {seconds} s")]
    Deadline {
        /// What was asked.
        action: &'static str,
        /// How long it had.
        seconds: u64,
    },
    /// The connection of a session was lost.
    #[error("cannot {action}: lost the connection to the pod's agent")]
    Session {
        /// What was going on.
        action: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// It never reported.
    #[error("the agent did not report within {seconds} s of its start")]
    NotReady {
        /// How long it had.
        seconds: u64,
    },
    /// It reported something that is not in the contract.
    #[error("the agent's report cannot be read: {what}")]
    Report {
        /// What was wrong.
        what: String,
    },
    /// The socket on which it reports fails.
    #[error("cannot listen for the agent on {path}")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl AgentError {
    /// For people: what the agent said itself, or why it said nothing.
    pub fn words(&self) -> String {
        match self {
            Self::Call { status, .. } if !status.message().is_empty() => {
                status.message().to_owned()
            }
            other => chain(other),
        }
    }

    /// The code of the agent's own answer, if it gave one.
    pub fn agent_code(&self) -> Option<Code> {
        match self {
            Self::Call { status, .. } => Some(status.code()),
            _ => None,
        }
    }
}

impl Grpc for AgentError {
    fn code(&self) -> Code {
        match self {
            Self::Call { status, .. } => match status.code() {
                // The agent's contract (agent/v1.proto); the rest is the transport's.
                code @ (Code::NotFound
                | Code::AlreadyExists
                | Code::InvalidArgument
                | Code::PermissionDenied
                | Code::FailedPrecondition
                | Code::DeadlineExceeded
                | Code::ResourceExhausted
                | Code::Unimplemented
                | Code::Unavailable) => code,
                _ => Code::Internal,
            },
            Self::Connect { .. } | Self::Session { .. } => Code::Unavailable,
            Self::Deadline { .. } | Self::NotReady { .. } => Code::DeadlineExceeded,
            Self::Report { .. } | Self::Listen { .. } => Code::Internal,
        }
    }
}
