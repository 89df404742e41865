//! Why a tree cannot be copied.

use std::io;
use std::path::PathBuf;

/// Why a tree cannot be copied.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The kernel refused a step.
    #[error("{step} {path:?}")]
    Step {
        /// Which.
        step: &'static str,
        /// On what, below the directory that is copied.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// It is larger than any use has been seen for.
    #[error("it has more than {allowed} {what}")]
    TooLarge {
        /// What it has too many of.
        what: &'static str,
        /// How many there may be.
        allowed: u64,
    },
}

impl TreeError {
    /// Whether the file system that is copied to is full.
    pub fn is_full(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, Self::Step { error, .. } if matches!(error.kind(), StorageFull | QuotaExceeded))
    }
}

/// What failed, before the path is known.
pub(super) struct Failure {
    pub(super) step: &'static str,
    pub(super) error: io::Error,
}

/// Names the step that failed.
pub(super) fn step<E: Into<io::Error>>(step: &'static str) -> impl Fn(E) -> Failure {
    move |error| Failure {
        step,
        error: error.into(),
    }
}
