//! What can go wrong with a container's volumes.

use std::path::PathBuf;

use bulkhead_images::ImagesError;
use tonic::Code;

use crate::{
    agent::AgentError,
    error::{Grpc, io_code},
};

/// A failure with a mount or a block device of a container.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A field makes no sense, by itself or with others.
    #[error("{field} is {value:?}: {allowed}")]
    Invalid {
        /// The field, as CRI names it, with the mount's number.
        field: String,
        /// What was given.
        value: String,
        /// What is wrong, or what may be given.
        allowed: &'static str,
    },
    /// More than a container can have.
    #[error("{requested} {what} requested; the limit is {limit}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        requested: usize,
        /// The most.
        limit: usize,
    },
    /// Something valid that this handler or release does not do.
    #[error("{what} is not supported: {advice}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// What to do instead.
        advice: &'static str,
    },
    /// The operator does not let pods have it.
    #[error("{what} is not allowed: {advice}")]
    NotAllowed {
        /// What was asked for.
        what: String,
        /// What to do.
        advice: &'static str,
    },
    /// The source on the host cannot be used.
    #[error("cannot {action} {}, the source of {field}", path.display())]
    Source {
        /// The field, as CRI names it, with the mount's number.
        field: String,
        /// What was attempted.
        action: &'static str,
        /// The path as given.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Something of the daemon's own on the host failed.
    #[error("cannot {action} {}", path.display())]
    Host {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Mounts below a directory that is to be removed would not go.
    #[error(
        "{} still has {count} mounts below it, the first at {}; it is left in place, so that no \
         file of the host is removed: unmount them by hand",
        path.display(), first.display()
    )]
    StillMounted {
        /// The directory.
        path: PathBuf,
        /// How many.
        count: usize,
        /// The first one.
        first: PathBuf,
    },
    /// An image volume's image.
    #[error("the image volume at {at:?}")]
    Image {
        /// Where it was to be.
        at: String,
        /// Why.
        source: ImagesError,
    },
    /// The agent.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The task was torn down.
    #[error("the request was given up, because the daemon is ending")]
    Ending,
}

impl Grpc for VolumeError {
    fn code(&self) -> Code {
        match self {
            Self::Invalid { .. } | Self::TooMany { .. } => Code::InvalidArgument,
            Self::Unsupported { .. } => Code::Unimplemented,
            Self::NotAllowed { .. } => Code::PermissionDenied,
            Self::Source { source, .. } => match source.kind() {
                std::io::ErrorKind::NotFound => Code::NotFound,
                std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                    Code::PermissionDenied
                }
                std::io::ErrorKind::NotADirectory | std::io::ErrorKind::InvalidFilename => {
                    Code::InvalidArgument
                }
                _ => io_code(source),
            },
            Self::Host { source, .. } => io_code(source),
            Self::StillMounted { .. } => Code::FailedPrecondition,
            Self::Image { source, .. } => source.code(),
            Self::Agent(e) => e.code(),
            Self::Ending => Code::Unavailable,
        }
    }
}
