//! What can go wrong with images.

use std::{
    error::Error,
    io::{self, ErrorKind},
    path::PathBuf,
    sync::Arc,
};

use bulkhead_records::RecordsError;

use crate::{
    archive::ArchiveError,
    digest::Digest,
    layer::LayerError,
    manifest::ManifestError,
    reference::BadName,
    registry::{BadAuth, RegistryError},
};

/// A failure of the image store or of a pull.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    /// No reference where one is needed.
    #[error("the request names no image; ImageSpec.image is empty")]
    NoName,
    /// A text that is no reference.
    #[error(
        "{given:?} is not an image reference: {source}; the form is \
         [registry/]repository[:tag][@sha256:digest]"
    )]
    Name {
        /// What was given.
        given: String,
        /// Why.
        source: BadName,
    },
    /// The credentials cannot be read.
    #[error("cannot pull {image}: {source}")]
    Auth {
        /// The image.
        image: String,
        /// Why.
        source: BadAuth,
    },
    /// Not here.
    #[error("image {image:?} is not on this node: not found; pull it first")]
    NotFound {
        /// What was asked for.
        image: String,
    },
    /// The start of more than one id.
    #[error("{given:?} is the beginning of more than one image id; give more of it")]
    Ambiguous {
        /// What was given.
        given: String,
    },
    /// Talking to the registry failed.
    #[error("cannot pull {image}: {source}")]
    Registry {
        /// The image.
        image: String,
        /// Why.
        source: Box<RegistryError>,
    },
    /// The image is not one that can be run here.
    #[error("cannot pull {image}: {source}")]
    Manifest {
        /// The image.
        image: String,
        /// Why.
        source: ManifestError,
    },
    /// The image is too large.
    #[error("cannot pull {image}: its layers have {size} bytes, compressed; the limit is {limit}")]
    TooLarge {
        /// The image.
        image: String,
        /// Sum of the layers' sizes.
        size: u64,
        /// How much is allowed.
        limit: u64,
    },
    /// The disk is known to be too small before anything is fetched.
    #[error(
        "cannot pull {image}: its layers have {size} bytes, and only {free} are free on the file \
         system of {dir}; remove images or enlarge it"
    )]
    NoSpace {
        /// The image.
        image: String,
        /// Bytes to be fetched.
        size: u64,
        /// Bytes free.
        free: u64,
        /// The store.
        dir: PathBuf,
    },
    /// A layer is not a layer.
    #[error("cannot unpack layer {digest} of {image}: {source}")]
    Layer {
        /// The image.
        image: String,
        /// The layer's blob.
        digest: Digest,
        /// Why.
        source: Box<LayerError>,
    },
    /// A layer's content is not what the image's configuration says.
    #[error(
        "layer {digest} of {image} unpacks to {actual}, not {expected} as the image's \
         configuration says; the image is damaged, push it again"
    )]
    DiffId {
        /// The image.
        image: String,
        /// The layer's blob.
        digest: Digest,
        /// What it should be.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// A file operation of the store failed.
    #[error("cannot {action} {path}: {source}")]
    Disk {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An archive cannot be imported or exported.
    #[error("cannot {action} the archive: {source}")]
    Archive {
        /// `import` or `export`.
        action: &'static str,
        /// Why.
        source: Box<ArchiveError>,
    },
    /// The records failed.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// The daemon is being stopped.
    #[error("{what} was given up, because the daemon is ending")]
    Ending {
        /// What was going on.
        what: &'static str,
    },
}

impl ImagesError {
    /// Whether the disk is full.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::NoSpace { .. } => true,
            Self::Layer { source, .. } => source.is_disk_full(),
            Self::Archive { source, .. } => source.is_disk_full(),
            Self::Disk { source, .. } => is_full(source),
            _ => false,
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::OutOfMemory
    )
}

/// The error of work that several callers wait for.
#[derive(Debug, Clone)]
pub struct SharedError(pub Arc<ImagesError>);

impl std::fmt::Display for SharedError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The kubelet tells "the registry is down" from other failures by this first word
        // (its ErrRegistryUnavailable), and shows it as the container's waiting reason.
        let from_registry = matches!(
            &*self.0,
            ImagesError::Registry { source, .. } if source.is_unavailable()
        );
        if from_registry {
            f.write_str("RegistryUnavailable: ")?;
        }
        self.0.fmt(f)
    }
}

impl Error for SharedError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

impl From<ImagesError> for SharedError {
    fn from(error: ImagesError) -> Self {
        Self(Arc::new(error))
    }
}
