//! Reading the kernel's files. One that is missing reads as empty: a controller that the kernel lacks
//! counts as 0, as in the kubelet's own reader.

use std::fs;
use std::path::Path;

use bulkhead_proto::agent::Psi;

use super::text;

/// A file's text.
pub fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// A pressure file; `None` where the kernel keeps none.
pub fn psi(path: impl AsRef<Path>) -> Option<Psi> {
    text::psi(&fs::read_to_string(path).ok()?)
}
