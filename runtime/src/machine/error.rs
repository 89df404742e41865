//! What can go wrong with a pod's machine.

use tonic::Code;

use super::{host::HostError, vm::VmmError};
use crate::{
    agent::AgentError,
    error::{Grpc, io_code},
    network::NetworkError,
    task::TaskError,
};

/// A failure of a machine, or in talking to it.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The VMM failed.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// Starting the agent on the host failed.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The agent failed.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The network failed.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// Something only a virtual machine has was asked of a pod on the host.
    #[error("the pod sandbox {id} runs on the host (handler \"host\"): it has no virtual machine")]
    NoVm {
        /// Which.
        id: String,
    },
    /// An operating-system call failed.
    #[error("cannot {action}")]
    Os {
        /// What was attempted, on what.
        action: String,
        /// Why.
        source: std::io::Error,
    },
    /// Its task did not come to its end.
    #[error(transparent)]
    Task(#[from] TaskError),
}

impl Grpc for MachineError {
    fn code(&self) -> Code {
        match self {
            Self::Vmm(e) => e.code(),
            Self::Host(e) => e.code(),
            Self::Agent(e) => e.code(),
            Self::Network(e) => e.code(),
            Self::NoVm { .. } => Code::FailedPrecondition,
            Self::Os { source, .. } => io_code(source),
            Self::Task(e) => e.code(),
        }
    }
}
