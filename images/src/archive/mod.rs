//! Images as files: `docker save`'s archives and OCI layouts, read and written, for nodes without
//! a registry.
//!
//! What an archive says is as hostile as a registry's answer, and checked as that is: blobs
//! against their digests, layers against the configuration's diff_ids, sizes and counts against
//! limits, paths never against a file system. An export is both kinds in one, and its images have
//! the ids they have here: layers are the tars they were, to the byte.

mod contents;
mod error;
mod export;
mod import;
mod spool;

pub use error::ArchiveError;
pub use export::Export;
pub(crate) use import::Importer;
