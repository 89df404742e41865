//! The entries of a tar stream, with all extended headers already applied.
//!
//! Formats: ustar, old tar, GNU (long names, base-256 numbers, sparse), PAX (with sparse 0.0,
//! 0.1, 1.0), star's prefix. Where they disagree, Go's `archive/tar` is followed: it is what
//! registries and builders check layers with.

use std::io::Read;

use super::error::{EntryProblem, FormatProblem, LayerError};
use super::header::{Header, text};
use super::limits::Limits;
use super::pax::Pax;
use super::recipe::Recorder;
use super::source::{Finished, Progress, Source};
use super::sparse::{self, Extent};
use crate::erofs::Piece;

/// One entry. The data of a file is read with [`Entries::data`] before the next entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub path: Vec<u8>,
    pub kind: EntryKind,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    /// Full names and values; a later one of the same name counts.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EntryKind {
    File { size: u64 },
    Sparse { size: u64, map: Vec<Extent> },
    Directory,
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

/// Reads a stream entry by entry.
pub(super) struct Entries<'a, R> {
    source: Source<'a, R>,
    limits: &'a Limits,
    /// Data of the current entry that is still to come, and the padding behind it.
    data: u64,
    padding: u64,
    count: u64,
}

/// Extended headers that were read for the next entry.
#[derive(Debug, Default)]
struct Extended {
    pax: Option<Pax>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    bytes: u64,
}

impl<'a, R: Read> Entries<'a, R> {
    pub(super) fn new(
        reader: R,
        limits: &'a Limits,
        progress: &'a mut dyn FnMut(Progress),
        recorder: Recorder,
    ) -> Self {
        let source = Source::new(reader, limits.max_layer_bytes, progress, recorder);
        Self {
            source,
            limits,
            data: 0,
            padding: 0,
            count: 0,
        }
    }

    /// How many entries there were.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Where in the stream the data of the current entry begins, if none of it was read.
    pub(super) fn offset(&self) -> u64 {
        self.source.offset()
    }

    /// Data of the current entry; empty at its end.
    pub(super) fn data(&mut self) -> Result<&[u8], LayerError> {
        if self.data == 0 {
            return Ok(&[]);
        }
        let offset = self.source.offset();
        let max = usize::try_from(self.data).unwrap_or(usize::MAX);
        let data = self.source.fill()?;
        if data.is_empty() {
            return Err(LayerError::Truncated {
                offset,
                what: "a file",
            });
        }
        Ok(data.get(..max).unwrap_or(data))
    }

    /// Where the data that was marked as used is in the image.
    pub(super) fn stored(&mut self, pieces: &[Piece]) -> Result<(), LayerError> {
        self.source.stored(pieces)
    }

    /// Marks data as used.
    pub(super) fn used(&mut self, n: usize) {
        self.source.consume_data(n);
        self.data = self.data.saturating_sub(n as u64);
    }

    /// Passes over what the stream has behind the archive; see [`Source::finish`].
    pub(super) fn finish(self) -> Result<Finished, LayerError> {
        self.source.finish()
    }

    /// The next entry, or `None` at the end of the archive.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, LayerError> {
        self.pass_body()?;
        let mut extended = Extended::default();
        loop {
            // Headers for an entry that does not come say nothing.
            let Some((block, header)) = self.header()? else {
                return Ok(None);
            };
            match header.kind {
                b'x' | b'X' => {
                    let body = self.extension(&header, &mut extended)?;
                    extended.pax = Some(Pax::parse(&body).map_err(|p| self.bad(p))?);
                }
                b'L' => {
                    let body = self.extension(&header, &mut extended)?;
                    extended.long_name = Some(text(&body).to_vec());
                }
                b'K' => {
                    let body = self.extension(&header, &mut extended)?;
                    extended.long_link = Some(text(&body).to_vec());
                }
                // Global headers and volume labels describe the archive, not files.
                b'g' | b'V' => {
                    self.extension(&header, &mut extended)?;
                }
                _ => return self.entry(&block, header, extended).map(Some),
            }
        }
    }

    /// The next header, or `None` at the end.
    fn header(&mut self) -> Result<Option<([u8; 512], Header)>, LayerError> {
        let Some(block) = self.source.block("a header")? else {
            return Ok(None);
        };
        if let Some(header) = Header::parse(&block).map_err(|p| self.bad(p))? {
            return Ok(Some((block, header)));
        }
        match self.source.block("the end of the archive")? {
            Some(block) if block.iter().any(|b| *b != 0) => Err(self.bad(FormatProblem::LoneZero)),
            _ => Ok(None),
        }
    }

    /// The body of an extended header.
    fn extension(
        &mut self,
        header: &Header,
        extended: &mut Extended,
    ) -> Result<Vec<u8>, LayerError> {
        let limit = self.limits.max_header_bytes;
        extended.bytes = extended
            .bytes
            .saturating_add(header.size.max(1))
            .saturating_add(512);
        if extended.bytes > limit {
            return Err(LayerError::Limit {
                what: "bytes of headers for one file",
                limit,
            });
        }
        let what = "an extended header";
        let body = self.source.take(header.size, what)?;
        self.source.pass(padding(header.size), what)?;
        Ok(body)
    }

    fn entry(
        &mut self,
        block: &[u8; 512],
        header: Header,
        extended: Extended,
    ) -> Result<Entry, LayerError> {
        self.count += 1;
        if self.count > self.limits.max_entries {
            return Err(LayerError::Limit {
                what: "entries",
                limit: self.limits.max_entries,
            });
        }
        let pax = extended.pax.unwrap_or_default();
        let path = extended.long_name.or(pax.path).unwrap_or(header.name);
        let path = pax.sparse.name.clone().unwrap_or(path);
        let link = extended.long_link.or(pax.link).unwrap_or(header.link);
        let mut kind = match header.kind {
            // Before ustar there was no type for directories.
            0 if path.ends_with(b"/") => EntryKind::Directory,
            0 | b'0' | b'7' | b'S' => EntryKind::File {
                size: pax.size.unwrap_or(header.size),
            },
            b'1' => EntryKind::HardLink(link),
            b'2' => EntryKind::Symlink(link),
            b'3' => EntryKind::CharDevice(header.major, header.minor),
            b'4' => EntryKind::BlockDevice(header.major, header.minor),
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => return Err(LayerError::entry(&path, EntryProblem::Type(other))),
        };
        let stored = match &kind {
            EntryKind::File { size } => *size,
            _ => header.size,
        };
        if stored > self.source.left() {
            return Err(LayerError::Limit {
                what: "bytes",
                limit: self.limits.max_layer_bytes,
            });
        }
        self.data = stored;
        self.padding = padding(stored);
        let sparse = if header.kind == b'S' {
            Some(sparse::old_gnu(
                block,
                &mut self.source,
                self.limits.max_sparse_extents,
            )?)
        } else if matches!(kind, EntryKind::File { .. }) {
            self.pax_sparse(&pax.sparse)?
        } else {
            None
        };
        if let Some((map, size)) = sparse {
            let map = sparse::check(&map, size, self.data).map_err(|p| self.bad(p))?;
            kind = EntryKind::Sparse { size, map };
        }
        let id = |n, what| owner(n).ok_or_else(|| self.bad(FormatProblem::Number(what)));
        Ok(Entry {
            path,
            kind,
            mode: header.mode,
            uid: id(pax.uid.unwrap_or(header.uid), "uid")?,
            gid: id(pax.gid.unwrap_or(header.gid), "gid")?,
            mtime: pax.mtime.unwrap_or((header.mtime, 0)),
            xattrs: pax.xattrs,
        })
    }

    /// The map of a file that a PAX header makes sparse, and its size with holes.
    fn pax_sparse(
        &mut self,
        pax: &super::pax::PaxSparse,
    ) -> Result<Option<(Vec<Extent>, u64)>, LayerError> {
        let size = || pax.size.ok_or(self.bad(FormatProblem::Sparse("no size")));
        let max = self.limits.max_sparse_extents;
        match (pax.major.unwrap_or(0), pax.minor.unwrap_or(0), &pax.map) {
            (1, 0, _) => {
                let size = size()?;
                let (map, used) = sparse::pax_1_0(&mut self.source, self.data, max)?;
                self.data -= used;
                Ok(Some((map, size)))
            }
            (0, _, Some(numbers)) => {
                if numbers.len() > 2 * max {
                    return Err(sparse::too_many(max));
                }
                let map = sparse::pairs(numbers).map_err(|p| self.bad(p))?;
                Ok(Some((map, size()?)))
            }
            (0, _, None) => Ok(None),
            _ => Err(self.bad(FormatProblem::Sparse("an unknown version"))),
        }
    }

    fn pass_body(&mut self) -> Result<(), LayerError> {
        self.source.pass(self.data, "a file")?;
        self.data = 0;
        // Some writers leave the padding of the last file out.
        let mut padding = std::mem::take(&mut self.padding);
        while padding > 0 {
            let n = self.source.fill()?.len();
            if n == 0 {
                break;
            }
            let n = n.min(usize::try_from(padding).unwrap_or(usize::MAX));
            self.source.consume(n)?;
            padding -= n as u64;
        }
        Ok(())
    }

    fn bad(&self, problem: FormatProblem) -> LayerError {
        LayerError::Format {
            offset: self.source.offset(),
            problem,
        }
    }
}

/// A user or group as chown(2) takes it: 32 bits, of which all set leave the owner as it is, and
/// that is root where a layer is unpacked.
fn owner(n: i64) -> Option<u32> {
    let id = match u32::try_from(n) {
        Ok(id) => id,
        Err(_) => i32::try_from(n).ok().filter(|n| *n < 0)?.cast_unsigned(),
    };
    Some(if id == u32::MAX { 0 } else { id })
}

/// Bytes from the end of a body to the next block.
fn padding(size: u64) -> u64 {
    (512 - size % 512) % 512
}
