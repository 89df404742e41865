//! The conversion of one layer, into a file or into memory.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::apply::Applier;
use super::description::Description;
use super::entries::Entries;
use super::error::LayerError;
use super::limits::Limits;
use super::recipe::{Recorded, Recorder};
use super::source::Progress;
use crate::digest::Digest;
use crate::erofs::Writer;

/// How the names of unfinished images begin: what a crash left behind is found by it.
pub const TEMP_PREFIX: &str = ".layer-";
/// How they end.
pub const TEMP_SUFFIX: &str = ".tmp";

/// What a conversion found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerInfo {
    /// Bytes of the tar stream.
    pub bytes: u64,
    /// Entries of the tar.
    pub entries: u64,
    /// SHA-256 of the tar stream: the layer's diff id, to be compared with the image's
    /// configuration before the layer is used.
    pub diff_id: [u8; 32],
    /// Length of the image.
    pub erofs_size: u64,
    /// Length of its file: the image, and what the file says of itself ([`Description`]).
    pub file_size: u64,
    /// Directories that have files in this layer but no entry of their own, parents first: they
    /// were made 0755 root:root, and hide the attributes that a layer below may have for them.
    pub implicit_dirs: Vec<Vec<u8>>,
    /// The root is opaque: layers below this one do not count. overlayfs does not look at the
    /// roots of its layers, so whoever stacks them has to leave them out.
    pub opaque_root: bool,
    /// Extended attributes that were left out.
    pub dropped_xattrs: u64,
}

/// A finished image that has no name yet. Dropping it removes the file.
#[derive(Debug)]
pub struct PendingLayer {
    info: LayerInfo,
    file: NamedTempFile,
}

impl PendingLayer {
    /// What the layer is.
    pub fn info(&self) -> &LayerInfo {
        &self.info
    }

    /// Gives the image its name in the directory it was made in, replacing what has that name.
    /// When this returns, file and name are on disk.
    ///
    /// # Errors
    /// When renaming or syncing fails; nothing is left then.
    pub fn commit(self, name: &str) -> Result<(PathBuf, LayerInfo), LayerError> {
        let dir = self
            .file
            .path()
            .parent()
            .unwrap_or(Path::new("/"))
            .to_path_buf();
        let path = dir.join(name);
        let failed = |doing, path: &Path, source| LayerError::File {
            doing,
            path: path.display().to_string(),
            source,
        };
        self.file
            .persist(&path)
            .map_err(|e| failed("naming the layer's image", &path, e.error))?;
        File::open(&dir)
            .and_then(|dir| dir.sync_all())
            .map_err(|e| failed("syncing the directory of layers", &dir, e))?;
        Ok((path, self.info))
    }
}

/// Converts a tar stream into an image in `dir`, and syncs it.
///
/// Blocks; `progress` is called about once per MiB of tar. What `reader` fails with comes back in
/// [`LayerError::Input`]. On any error nothing is left in `dir`.
///
/// # Errors
/// See [`LayerError`].
pub fn convert<R: Read>(
    reader: R,
    dir: &Path,
    limits: &Limits,
    progress: &mut dyn FnMut(Progress),
) -> Result<PendingLayer, LayerError> {
    let failed = |doing, source| LayerError::File {
        doing,
        path: dir.display().to_string(),
        source,
    };
    let file = tempfile::Builder::new()
        .prefix(TEMP_PREFIX)
        .suffix(TEMP_SUFFIX)
        .tempfile_in(dir)
        .map_err(|e| failed("creating a layer's image in", e))?;
    let describing = |e| failed("describing a layer's image in", e);
    let recorder = Recorder::to_file(dir).map_err(describing)?;
    let (_, mut info, recorded) = run(reader, file.as_file(), limits, progress, recorder)?;
    let (recipe, end) = recorded
        .append(file.as_file(), info.erofs_size)
        .map_err(describing)?;
    let description = Description {
        diff_id: Digest::from_sha256(&info.diff_id),
        opaque_root: info.opaque_root,
        implicit_dirs: info.implicit_dirs.clone(),
        tar_size: info.bytes,
        recipe,
    };
    info.file_size = description
        .append(file.as_file(), end)
        .map_err(describing)?;
    file.as_file()
        .sync_all()
        .map_err(|e| failed("syncing a layer's image in", e))?;
    Ok(PendingLayer { info, file })
}

/// Converts a tar stream into an image in an empty file or buffer, and returns that.
///
/// # Errors
/// See [`LayerError`].
pub fn convert_into<R: Read, W: Write + Seek>(
    reader: R,
    out: W,
    limits: &Limits,
    progress: &mut dyn FnMut(Progress),
) -> Result<(W, LayerInfo), LayerError> {
    let (out, info, _) = run(reader, out, limits, progress, Recorder::none())?;
    Ok((out, info))
}

pub(super) fn run<R: Read, W: Write + Seek>(
    reader: R,
    out: W,
    limits: &Limits,
    progress: &mut dyn FnMut(Progress),
    recorder: Recorder,
) -> Result<(W, LayerInfo, Recorded), LayerError> {
    let mut applier = Applier::new(Writer::new(out, limits.max_layer_bytes)?, limits);
    let mut entries = Entries::new(reader, limits, progress, recorder);
    while let Some(entry) = entries.next()? {
        applier.apply(&entry, &mut entries)?;
    }
    let count = entries.count();
    let tar = entries.finish()?;
    let (out, applied) = applier.finish(uuid(&tar.sha256))?;
    let info = LayerInfo {
        bytes: tar.bytes,
        entries: count,
        diff_id: tar.sha256,
        erofs_size: applied.size,
        file_size: applied.size,
        implicit_dirs: applied.implicit_dirs,
        opaque_root: applied.opaque_root,
        dropped_xattrs: applied.dropped_xattrs,
    };
    let recorded = tar.recorder.finish(applied.inodes)?;
    Ok((out, info, recorded))
}

/// The volume's UUID follows from the content (RFC 9562 version 8), so that the same layer gives
/// the same image everywhere.
fn uuid(diff_id: &[u8; 32]) -> [u8; 16] {
    let mut uuid = [0; 16];
    for (to, from) in uuid.iter_mut().zip(diff_id) {
        *to = *from;
    }
    uuid[6] = (uuid[6] & 0x0f) | 0x80;
    uuid[8] = (uuid[8] & 0x3f) | 0x80;
    uuid
}
