//! The gRPC code of each failure of the image service.

use bulkhead_images::{
    ImagesError, SharedError, archive::ArchiveError, layer::LayerError, manifest::ManifestError,
    registry::RegistryError,
};
use tonic::Code;

use crate::error::{Grpc, io_code};

impl Grpc for ImagesError {
    fn code(&self) -> Code {
        match self {
            Self::NoName | Self::Name { .. } | Self::Auth { .. } | Self::Ambiguous { .. } => {
                Code::InvalidArgument
            }
            Self::NotFound { .. } => Code::NotFound,
            Self::Registry { source, .. } => registry_code(source),
            Self::Manifest { source, .. } => manifest_code(source),
            Self::TooLarge { .. } => Code::FailedPrecondition,
            Self::NoSpace { .. } => Code::ResourceExhausted,
            Self::Layer { source, .. } => layer_code(source),
            Self::DiffId { .. } => Code::DataLoss,
            Self::Archive { source, .. } => archive_code(source),
            Self::Disk { source, .. } => io_code(source),
            Self::Records(source) => source.code(),
            Self::Ending { .. } => Code::Unavailable,
        }
    }
}

impl Grpc for SharedError {
    fn code(&self) -> Code {
        self.0.code()
    }
}

fn archive_code(error: &ArchiveError) -> Code {
    match error {
        _ if error.is_disk_full() => Code::ResourceExhausted,
        ArchiveError::Spool { source, .. } => io_code(source),
        ArchiveError::Broken { .. } => Code::Aborted,
        ArchiveError::Tar { .. }
        | ArchiveError::Neither
        | ArchiveError::Json { .. }
        | ArchiveError::Name { .. }
        | ArchiveError::Several { .. } => Code::InvalidArgument,
        ArchiveError::Missing { .. } | ArchiveError::Digest { .. } | ArchiveError::Layer { .. } => {
            Code::DataLoss
        }
        ArchiveError::TooLarge { .. } | ArchiveError::Incomplete { .. } => Code::FailedPrecondition,
        ArchiveError::Manifest { source } => manifest_code(source),
        ArchiveError::Write { .. } => Code::Aborted,
    }
}

fn registry_code(error: &RegistryError) -> Code {
    match error {
        RegistryError::Hosts(_)
        | RegistryError::Tls { .. }
        | RegistryError::NoHost { .. }
        | RegistryError::TooLarge { .. } => Code::FailedPrecondition,
        RegistryError::Unauthenticated { .. } | RegistryError::Token { .. } => {
            Code::Unauthenticated
        }
        RegistryError::Forbidden { .. } => Code::PermissionDenied,
        RegistryError::NotFound { .. } => Code::NotFound,
        RegistryError::RateLimited { .. } => Code::ResourceExhausted,
        RegistryError::Digest { .. } | RegistryError::Length { .. } => Code::DataLoss,
        _ if error.is_unavailable() => Code::Unavailable,
        _ => Code::Internal,
    }
}

fn manifest_code(error: &ManifestError) -> Code {
    match error {
        ManifestError::Platform { .. } => Code::NotFound,
        ManifestError::MediaType { .. } | ManifestError::SchemaOne => Code::Unimplemented,
        _ => Code::FailedPrecondition,
    }
}

/// A layer that is not what it should be is the image's fault, a file that cannot be written the
/// node's.
fn layer_code(error: &LayerError) -> Code {
    match error {
        _ if error.is_disk_full() => Code::ResourceExhausted,
        LayerError::File { source, .. } => io_code(source),
        LayerError::Image(_) => Code::Internal,
        LayerError::Input { .. } | LayerError::Truncated { .. } => Code::DataLoss,
        LayerError::Format { .. } | LayerError::Entry { .. } | LayerError::Limit { .. } => {
            Code::FailedPrecondition
        }
    }
}
