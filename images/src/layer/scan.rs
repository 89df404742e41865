//! What is in a tar, and where: for archives that hold layers, which are no layers themselves.

use std::io::Read;

use super::entries::{Entries, EntryKind};
use super::error::LayerError;
use super::limits::Limits;
use super::recipe::Recorder;
use super::tree::components;

/// An entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scanned {
    /// A file: where its bytes are in the tar.
    File {
        /// The first.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// A symbolic or hard link; a symbolic one is relative to its own directory.
    Link {
        /// To where.
        target: Vec<u8>,
        /// Whether it is a symbolic one.
        symbolic: bool,
    },
}

/// Reads a tar to its end and tells of each file and link; paths are cleaned and relative to the
/// root.
///
/// # Errors
/// See [`LayerError`].
pub fn scan<R: Read>(
    reader: R,
    limits: &Limits,
    visit: &mut dyn FnMut(String, Scanned),
) -> Result<(), LayerError> {
    let progress = &mut |_| {};
    let mut entries = Entries::new(reader, limits, progress, Recorder::none());
    while let Some(entry) = entries.next()? {
        let path = clean(&entry.path, limits)?;
        let offset = entries.offset();
        match entry.kind {
            EntryKind::File { size } => visit(path, Scanned::File { offset, len: size }),
            EntryKind::Symlink(target) => {
                let symbolic = true;
                visit(path, Scanned::Link { target, symbolic });
            }
            EntryKind::HardLink(target) => {
                let symbolic = false;
                visit(path, Scanned::Link { target, symbolic });
            }
            _ => {}
        }
    }
    entries.finish()?;
    Ok(())
}

/// A path as its components, joined.
fn clean(path: &[u8], limits: &Limits) -> Result<String, LayerError> {
    let parts = components(path, limits).map_err(|problem| LayerError::entry(path, problem))?;
    Ok(String::from_utf8_lossy(&parts.join(&b'/')).into_owned())
}
