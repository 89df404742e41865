//! What can go wrong with a container's log.

use std::path::PathBuf;

use tonic::Code;

use crate::error::{Grpc, io_code};

/// A container's log cannot be opened, written or taken over.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// CRI's path is not below its directory.
    #[error(
        "the log path {path:?} cannot be used: it must be relative to log_directory (which must be \
         absolute), without \"..\""
    )]
    Path {
        /// Directory and path as given.
        path: String,
    },
    /// The file or a directory above it does not open.
    #[error("cannot {action} the log {path}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What is at the path is not a regular file.
    #[error("the log {path} is not a regular file")]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// A checkpoint does not read.
    #[error("the log checkpoint {path} cannot be read")]
    Checkpoint {
        /// The checkpoint's file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The container has no log or its output has ended.
    #[error("the container {container} has no open log: it is not running")]
    Closed {
        /// The container.
        container: String,
    },
    /// The task was torn down.
    #[error("the write to the log was abandoned: the daemon is shutting down")]
    Ending,
}

impl Grpc for LogError {
    fn code(&self) -> Code {
        match self {
            Self::Path { .. } | Self::NotAFile { .. } => Code::InvalidArgument,
            Self::Io { source, .. } => io_code(source),
            Self::Checkpoint { .. } => Code::Internal,
            Self::Closed { .. } => Code::FailedPrecondition,
            Self::Ending => Code::Unavailable,
        }
    }
}
