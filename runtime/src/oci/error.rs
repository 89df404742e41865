//! Why a request cannot be turned into a container, for every file of this directory.

use std::path::PathBuf;

use oci_spec::OciSpecError;
use tonic::Code;

use crate::error::Grpc;

/// A request that cannot be turned into a container.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// A field has a value that is not allowed.
    #[error("{field} is {value:?}; allowed: {allowed}")]
    Invalid {
        /// The field, as CRI or the image names it.
        field: &'static str,
        /// What was given.
        value: String,
        /// What may be given.
        allowed: &'static str,
    },
    /// Something valid that this runtime does not do.
    #[error("{what} is not supported: {advice}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// What to do instead.
        advice: &'static str,
    },
    /// There is nothing to run.
    #[error(
        "no command specified: the image has neither entrypoint nor cmd; set `command` or `args`"
    )]
    NoCommand,
    /// More than the kernel passes to any program.
    #[error(
        "argument list too long: arguments and environment take {bytes} bytes, and Linux passes at \
         most {most} to a program"
    )]
    TooLong {
        /// How much there is.
        bytes: usize,
        /// How much there may be.
        most: usize,
    },
    /// The localhost seccomp profile does not read.
    #[error("cannot read the seccomp profile {path}")]
    SeccompFile {
        /// The file on the node.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The localhost seccomp profile is not one.
    #[error("the seccomp profile {path} is not in the JSON form of OCI's linux.seccomp")]
    SeccompParse {
        /// The file on the node.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The built-in default profile does not parse: a bug.
    #[error("the built-in seccomp profile is damaged")]
    DefaultProfile(#[source] toml::de::Error),
    /// The OCI library refused what was built: a bug.
    #[error("the OCI runtime spec cannot be built")]
    Spec(#[from] OciSpecError),
    /// The finished spec does not encode: a bug.
    #[error("the OCI runtime spec cannot be encoded")]
    Encode(#[source] serde_json::Error),
}

impl Grpc for OciError {
    fn code(&self) -> Code {
        match self {
            Self::Invalid { .. }
            | Self::NoCommand
            | Self::TooLong { .. }
            | Self::SeccompParse { .. } => Code::InvalidArgument,
            Self::Unsupported { .. } => Code::Unimplemented,
            Self::SeccompFile { source, .. } => match source.kind() {
                std::io::ErrorKind::NotFound => Code::NotFound,
                std::io::ErrorKind::PermissionDenied => Code::PermissionDenied,
                _ => Code::InvalidArgument,
            },
            Self::DefaultProfile(_) | Self::Spec(_) | Self::Encode(_) => Code::Internal,
        }
    }
}
