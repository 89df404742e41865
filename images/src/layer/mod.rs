//! From a layer (the uncompressed tar stream of an OCI image layer) to an EROFS image.
//!
//! [`convert`] reads the stream once, hashes it, and writes the image into a temporary file beside
//! its future place; nothing is unpacked. The stream is hostile until its digest is known to be
//! right, and hostile still when its author is: every count, size and path is checked against
//! [`Limits`], and all paths are resolved in a tree in memory, never in a file system.
//!
//! Here: the tar formats (`header`, `pax`, `sparse`, `entries`), the tree that the entries
//! build (`tree`), the meaning of OCI whiteouts (`apply`), and the limits. Not here: fetching,
//! decompressing and comparing digests (`pull`), and the format of the image
//! ([`super::erofs`]).

mod apply;
mod convert;
mod description;
mod entries;
mod error;
mod header;
mod limits;
mod pax;
mod recipe;
mod scan;
mod source;
mod sparse;
#[cfg(test)]
mod tests;
mod tree;

pub use convert::{LayerInfo, PendingLayer, TEMP_PREFIX, TEMP_SUFFIX, convert, convert_into};
pub use description::Description;
pub use error::{EntryProblem, FormatProblem, LayerError};
pub use limits::Limits;
pub use recipe::{Rebuild, Recipe};
pub use scan::{Scanned, scan};
pub use source::Progress;
