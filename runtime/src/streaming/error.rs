//! What can go wrong before a client is connected.

use bulkhead_streaming::ServerError;
use tonic::Code;

use crate::{
    container::ContainerError,
    error::{Grpc, io_code},
    sandbox::SandboxError,
};

/// A failure of Exec, Attach or PortForward.
#[derive(Debug, thiserror::Error)]
pub enum StreamingError {
    /// The request makes no sense.
    #[error("the request cannot be used: {field} {what}")]
    Invalid {
        /// The field, as CRI names it.
        field: &'static str,
        /// What is wrong, and what would be right.
        what: String,
    },
    /// The streaming server.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The container.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// The pod.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

impl Grpc for StreamingError {
    fn code(&self) -> Code {
        match self {
            Self::Invalid { .. } => Code::InvalidArgument,
            Self::Server(error) => match error {
                ServerError::Full { .. } => Code::ResourceExhausted,
                ServerError::NotListening => Code::Unavailable,
                ServerError::Listen { source, .. } | ServerError::Random { source } => {
                    io_code(source)
                }
                ServerError::Tls { .. } => Code::Internal,
            },
            Self::Container(error) => error.code(),
            Self::Sandbox(error) => error.code(),
        }
    }
}
