//! What can be wrong with an archive of images.

use std::io;

use crate::{digest::Digest, layer::LayerError, manifest::ManifestError, reference::BadName};

/// Why an archive cannot be imported, or an image not be exported.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It did not come whole.
    #[error("the archive broke off before its end")]
    Broken {
        /// What its sender said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It cannot be kept for a moment, or read again.
    #[error("cannot {action} the archive")]
    Spool {
        /// What was attempted.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Not a tar.
    #[error("this is not an archive of images; a tar is needed, as `docker save` makes it")]
    Tar {
        /// Why.
        source: Box<LayerError>,
    },
    /// A tar of something else.
    #[error(
        "the archive has neither an index.json (OCI) nor a manifest.json (docker save): it is no \
         archive of images"
    )]
    Neither,
    /// Something that another part of it names.
    #[error("the archive has no {name:?}, which {by} names")]
    Missing {
        /// The file.
        name: String,
        /// What names it.
        by: &'static str,
    },
    /// Too large.
    #[error("{name:?} in the archive has {size} bytes, at most {limit} are allowed")]
    TooLarge {
        /// The file.
        name: String,
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// The content is not what its name says.
    #[error("{name:?} in the archive has the digest {actual}; the archive is damaged")]
    Digest {
        /// The file, named by its digest.
        name: String,
        /// What it is.
        actual: Digest,
    },
    /// A list that is none.
    #[error("{name:?} in the archive is not what it should be")]
    Json {
        /// The file.
        name: &'static str,
        /// Why.
        source: serde_json::Error,
    },
    /// A manifest or configuration is refused.
    #[error("an image of the archive cannot be used")]
    Manifest {
        /// Why.
        #[from]
        source: ManifestError,
    },
    /// A name in it is none.
    #[error("the archive calls an image {name:?}, which is no reference to one")]
    Name {
        /// The name.
        name: String,
        /// Why.
        source: BadName,
    },
    /// A name was given for several.
    #[error("the archive has {count} images, which cannot share one name")]
    Several {
        /// How many.
        count: usize,
    },
    /// The image came before files said what they are.
    #[error(
        "image {image} was pulled by an earlier release, which did not keep what an archive needs; \
         remove it and pull it again"
    )]
    Incomplete {
        /// Its id.
        image: String,
    },
    /// A layer's file is not what it was.
    #[error("layer {diff_id} is damaged on this node; remove the image and pull it again")]
    Layer {
        /// The layer.
        diff_id: Digest,
        /// Why, if reading failed.
        source: Option<io::Error>,
    },
    /// The receiver of an export has gone.
    #[error("cannot write the archive")]
    Write {
        /// Why.
        source: io::Error,
    },
}

impl ArchiveError {
    /// Whether the node's disk is full.
    pub fn is_disk_full(&self) -> bool {
        let kind = match self {
            Self::Spool { source, .. } => source.kind(),
            Self::Tar { source } => match &**source {
                LayerError::Input { source, .. } => source.kind(),
                _ => return false,
            },
            _ => return false,
        };
        matches!(
            kind,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }
}
