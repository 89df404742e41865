//! What can go wrong before a client is connected.

use std::{net::SocketAddr, path::PathBuf};

use tonic::Code;

use crate::{
    container::ContainerError,
    error::{Grpc, io_code},
    sandbox::SandboxError,
};

/// A failure of the streaming server.
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
    /// Too many URLs that nobody has used yet.
    #[error(
        "{limit} streaming URLs wait to be used; one that is not used within a minute frees its place"
    )]
    Full {
        /// How many there may be.
        limit: usize,
    },
    /// No server yet.
    #[error("the streaming server does not listen yet; try again when the daemon has started")]
    NotListening,
    /// The address cannot be had.
    #[error("cannot listen for streaming on {address} (streaming.address in the configuration)")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Certificate or key.
    #[error("cannot use {path} for the streaming server: {what}")]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The system's source of random numbers.
    #[error("cannot make a token")]
    Random {
        /// Why.
        source: std::io::Error,
    },
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
            Self::Full { .. } => Code::ResourceExhausted,
            Self::NotListening => Code::Unavailable,
            Self::Listen { source, .. } | Self::Random { source } => io_code(source),
            Self::Tls { .. } => Code::Internal,
            Self::Container(error) => error.code(),
            Self::Sandbox(error) => error.code(),
        }
    }
}
