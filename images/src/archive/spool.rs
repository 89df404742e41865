//! An archive as it comes: kept in a file without a name while it is read, and what is in it.
//!
//! What an archive has at its end says what the rest is, so it must be whole before anything of
//! it can be used. Nothing of it is unpacked: files in it are parts of the one file.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufRead, BufReader, BufWriter, Read, Write},
    path::Path,
};

use super::error::ArchiveError;
use crate::{
    digest::{Digest, Hasher},
    layer::{self, Limits, Scanned},
    part::Part,
    pull::unpack,
};

/// Most files in an archive; an image has at most 500 layers, with three files each.
const MOST_ENTRIES: u64 = 100_000;
/// Longest chain of links.
const MOST_LINKS: usize = 8;

/// An archive that is here.
#[derive(Debug)]
pub(super) struct Spool {
    file: File,
    entries: HashMap<String, Scanned>,
}

impl Spool {
    /// Reads an archive, packed or not, of at most `limit` bytes unpacked. Blocks.
    pub(super) fn read(reader: impl BufRead, dir: &Path, limit: u64) -> Result<Self, ArchiveError> {
        let failed = |action| move |source| ArchiveError::Spool { action, source };
        let file = tempfile::tempfile_in(dir).map_err(failed("make a temporary file for"))?;
        let writer = file
            .try_clone()
            .map_err(failed("make a temporary file for"))?;
        let limits = Limits {
            max_layer_bytes: limit,
            max_entries: MOST_ENTRIES,
            max_memory_bytes: 64 << 20,
            ..Limits::default()
        };
        let mut tee = Tee {
            from: unpack(reader).map_err(failed("read"))?,
            to: BufWriter::with_capacity(1 << 20, writer),
        };
        let mut entries = HashMap::new();
        layer::scan(&mut tee, &limits, &mut |path, what| {
            entries.insert(path, what);
        })
        .map_err(|source| ArchiveError::Tar {
            source: Box::new(source),
        })?;
        // Behind packed data there may be more, which says nothing; but its end is the end.
        tee.to.flush().map_err(failed("keep"))?;
        io::copy(&mut tee.from.into_inner(), &mut io::sink()).map_err(failed("read"))?;
        Ok(Self { file, entries })
    }

    /// Whether there is such a file.
    pub(super) fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// Where a file's bytes are, through links.
    fn find(&self, name: &str) -> Option<(u64, u64)> {
        let mut name = clean(name, "");
        for _ in 0..MOST_LINKS {
            match self.entries.get(&name)? {
                Scanned::File { offset, len } => return Some((*offset, *len)),
                Scanned::Link { target, symbolic } => {
                    let dir = if *symbolic {
                        name.rsplit_once('/').map_or("", |(dir, _)| dir)
                    } else {
                        ""
                    };
                    name = clean(std::str::from_utf8(target).ok()?, dir);
                }
            }
        }
        None
    }

    /// A file as a stream, and its size.
    pub(super) fn open(&self, name: &str, by: &'static str) -> Result<(Part, u64), ArchiveError> {
        let (at, len) = self.find(name).ok_or_else(|| ArchiveError::Missing {
            name: name.chars().take(200).collect(),
            by,
        })?;
        let file = self
            .file
            .try_clone()
            .map_err(|source| ArchiveError::Spool {
                action: "read",
                source,
            })?;
        Ok((Part::new(file, at, len), len))
    }

    /// A small file whole.
    pub(super) fn whole(
        &self,
        name: &str,
        by: &'static str,
        limit: u64,
    ) -> Result<Vec<u8>, ArchiveError> {
        let (mut part, size) = self.open(name, by)?;
        if size > limit {
            return Err(ArchiveError::TooLarge {
                name: name.chars().take(200).collect(),
                size,
                limit,
            });
        }
        let mut bytes = Vec::new();
        part.read_to_end(&mut bytes)
            .map_err(|source| ArchiveError::Spool {
                action: "read",
                source,
            })?;
        Ok(bytes)
    }

    /// A small blob, whose name is its digest.
    pub(super) fn blob(
        &self,
        digest: &Digest,
        by: &'static str,
        limit: u64,
    ) -> Result<Vec<u8>, ArchiveError> {
        let name = blob_name(digest);
        let bytes = self.whole(&name, by, limit)?;
        let mut hasher = digest.hasher();
        hasher.update(&bytes);
        let actual = hasher.finish();
        if actual != *digest {
            return Err(ArchiveError::Digest { name, actual });
        }
        Ok(bytes)
    }
}

/// Where an OCI layout has a blob.
pub(super) fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}", digest.to_string().replace(':', "/"))
}

/// A path from the root, whatever it has of `.` and `..`.
fn clean(path: &str, dir: &str) -> String {
    let start = if path.starts_with('/') { "" } else { dir };
    let mut parts: Vec<&str> = Vec::new();
    for part in start.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Keeps what is read.
struct Tee<R> {
    from: R,
    to: BufWriter<File>,
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(to)?;
        self.to.write_all(to.get(..n).unwrap_or_default())?;
        Ok(n)
    }
}

/// Reads a blob; its true end is told only if it was the right one.
pub(super) struct Checked {
    part: BufReader<Part>,
    hasher: Option<Hasher>,
    expected: Option<Digest>,
    actual: Option<Digest>,
}

impl Checked {
    /// Without a digest everything is right.
    pub(super) fn new(part: Part, expected: Option<Digest>) -> Self {
        Self {
            part: BufReader::with_capacity(256 << 10, part),
            hasher: expected.as_ref().map(Digest::hasher),
            expected,
            actual: None,
        }
    }

    /// Reads to the end, and gives the digest of a blob that is not the right one.
    pub(super) fn wrong_digest(mut self) -> Option<Digest> {
        // Its error is what is asked for.
        let _ = io::copy(&mut self, &mut io::sink());
        self.actual
    }
}

impl Read for Checked {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(to)?;
        self.consume(n);
        Ok(n)
    }
}

impl BufRead for Checked {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.part.fill_buf()?.is_empty() {
            if let (Some(hasher), Some(expected)) = (self.hasher.take(), &self.expected) {
                let actual = hasher.finish();
                self.actual = (actual != *expected).then_some(actual);
            }
            if let Some(actual) = &self.actual {
                let text = format!("the archive is damaged: this blob has the digest {actual}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
        }
        self.part.fill_buf()
    }

    fn consume(&mut self, n: usize) {
        if let Some(hasher) = &mut self.hasher {
            hasher.update(self.part.buffer().get(..n).unwrap_or_default());
        }
        self.part.consume(n);
    }
}
