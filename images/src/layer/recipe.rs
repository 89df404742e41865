//! How a layer's tar was: everything of it that its image does not hold (headers, padding, what is
//! behind the end), and where the image holds the rest. An image that is exported is so the same
//! to the byte, with the same digests.
//!
//! A recipe is a list of steps, compressed: bytes as they stand, a piece of the image, a piece
//! behind an inode. Where inodes are is known when the image ends, so a table of that follows.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek as _, SeekFrom, Write as _},
    os::unix::fs::FileExt as _,
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::error::LayerError;
use crate::{erofs::Piece, part::Part};

const RAW: u8 = 0;
const AT: u8 = 1;
const BEHIND: u8 = 2;
/// Bytes as they stand are collected up to this.
const MOST_RAW: usize = 64 << 10;
/// Inodes in a table: as many as a layer can have.
const MOST_INODES: u64 = 1 << 31;

/// Where a layer's file has the two parts of its recipe: first byte and length of each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    steps: (u64, u64),
    inodes: (u64, u64),
    count: u64,
}

/// Writes down the steps while a layer is converted.
#[derive(Debug)]
pub(super) struct Recorder {
    out: Option<Steps>,
    raw: Vec<u8>,
}

type Encoder = zstd::stream::write::Encoder<'static, File>;

struct Steps(Encoder);

impl std::fmt::Debug for Steps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Steps")
    }
}

impl Recorder {
    /// Writes down nothing.
    pub(super) fn none() -> Self {
        Self {
            out: None,
            raw: Vec::new(),
        }
    }

    /// Into a file without a name in `dir`: a layer of many files has a long recipe.
    pub(super) fn to_file(dir: &Path) -> io::Result<Self> {
        let encoder = Encoder::new(tempfile::tempfile_in(dir)?, 1)?;
        Ok(Self {
            out: Some(Steps(encoder)),
            raw: Vec::with_capacity(MOST_RAW),
        })
    }

    /// Bytes of the tar that are not in the image.
    pub(super) fn raw(&mut self, bytes: &[u8]) -> Result<(), LayerError> {
        if self.out.is_none() {
            return Ok(());
        }
        for part in bytes.chunks(MOST_RAW) {
            if self.raw.len() + part.len() > MOST_RAW {
                self.flush()?;
            }
            self.raw.extend_from_slice(part);
        }
        Ok(())
    }

    /// Data of a file, which the image has.
    pub(super) fn stored(&mut self, pieces: &[Piece]) -> Result<(), LayerError> {
        if self.out.is_none() {
            return Ok(());
        }
        self.flush()?;
        for piece in pieces {
            match *piece {
                Piece::At { offset, len } => {
                    self.write(&[&[AT], &offset.to_le_bytes(), &len.to_le_bytes()])?
                }
                Piece::Behind { inode, offset, len } => self.write(&[
                    &[BEHIND],
                    &inode.index().to_le_bytes(),
                    &offset.to_le_bytes(),
                    &len.to_le_bytes(),
                ])?,
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), LayerError> {
        if self.raw.is_empty() {
            return Ok(());
        }
        let raw = std::mem::take(&mut self.raw);
        let len = u32::try_from(raw.len()).unwrap_or(u32::MAX);
        self.write(&[&[RAW], &len.to_le_bytes(), &raw])?;
        self.raw = raw;
        self.raw.clear();
        Ok(())
    }

    fn write(&mut self, parts: &[&[u8]]) -> Result<(), LayerError> {
        let Some(Steps(out)) = &mut self.out else {
            return Ok(());
        };
        parts
            .iter()
            .try_for_each(|part| out.write_all(part))
            .map_err(failed)
    }

    /// Ends the list.
    pub(super) fn finish(mut self, inodes: Vec<u64>) -> Result<Recorded, LayerError> {
        self.flush()?;
        let steps = match self.out {
            Some(Steps(encoder)) => Some(encoder.finish().map_err(failed)?),
            None => None,
        };
        Ok(Recorded { steps, inodes })
    }
}

fn failed(source: io::Error) -> LayerError {
    LayerError::File {
        doing: "writing down how a layer's tar was, in",
        path: "a temporary file beside it".to_owned(),
        source,
    }
}

/// A recipe that is whole.
#[derive(Debug)]
pub(super) struct Recorded {
    steps: Option<File>,
    inodes: Vec<u64>,
}

impl Recorded {
    /// Writes it into a layer's file from byte `behind` on; returns where it is and ends.
    pub(super) fn append(self, file: &File, behind: u64) -> io::Result<(Recipe, u64)> {
        let mut to = file;
        to.seek(SeekFrom::Start(behind))?;
        let steps = match self.steps {
            Some(mut steps) => {
                steps.seek(SeekFrom::Start(0))?;
                io::copy(&mut steps, &mut to)?
            }
            None => 0,
        };
        let mut encoder = zstd::stream::write::Encoder::new(to, 1)?;
        let mut before = 0_u64;
        // Differences: they are small and alike.
        for inode in &self.inodes {
            encoder.write_all(&inode.wrapping_sub(before).to_le_bytes())?;
            before = *inode;
        }
        encoder.finish()?;
        let end = to.stream_position()?;
        let recipe = Recipe {
            steps: (behind, steps),
            inodes: (behind + steps, end - behind - steps),
            count: self.inodes.len() as u64,
        };
        Ok((recipe, end))
    }
}

/// A layer's tar, made again from its file. What it gives is only as right as the file: compare
/// its digest.
pub struct Rebuild {
    file: File,
    steps: BufReader<zstd::stream::read::Decoder<'static, BufReader<Part>>>,
    inodes: Vec<u64>,
    /// What the current step has left.
    current: Step,
}

impl std::fmt::Debug for Rebuild {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rebuild")
            .field("current", &self.current)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// So many bytes of the list itself.
    Raw(u64),
    /// From a byte of the file on, so many.
    File(u64, u64),
}

impl Rebuild {
    /// Begins. Blocks, as reading does.
    ///
    /// # Errors
    /// The file cannot be read, or its recipe is damaged.
    pub fn new(file: File, recipe: &Recipe) -> io::Result<Self> {
        let part = |(at, len): (u64, u64)| decode(Part::new(file.try_clone()?, at, len));
        if recipe.count > MOST_INODES {
            return Err(damaged());
        }
        let mut table = BufReader::new(part(recipe.inodes)?);
        let mut inodes = Vec::new();
        let mut before = 0_u64;
        for _ in 0..recipe.count {
            before = before.wrapping_add(u64::from_le_bytes(array(&mut table)?));
            inodes.push(before);
        }
        Ok(Self {
            steps: BufReader::new(part(recipe.steps)?),
            file,
            inodes,
            current: Step::Raw(0),
        })
    }

    /// The next step; `None` at the end.
    fn step(&mut self) -> io::Result<Option<Step>> {
        let mut kind = [0];
        if self.steps.read(&mut kind)? == 0 {
            return Ok(None);
        }
        let steps = &mut self.steps;
        Ok(Some(match kind[0] {
            RAW => Step::Raw(u64::from(u32::from_le_bytes(array(steps)?))),
            AT => {
                let offset = u64::from_le_bytes(array(steps)?);
                Step::File(offset, u64::from_le_bytes(array(steps)?))
            }
            BEHIND => {
                let inode = usize::try_from(u32::from_le_bytes(array(steps)?));
                let offset = u64::from(u32::from_le_bytes(array(steps)?));
                let len = u64::from(u32::from_le_bytes(array(steps)?));
                let start = inode.ok().and_then(|inode| self.inodes.get(inode));
                let start = start.and_then(|start| start.checked_add(offset));
                Step::File(start.ok_or_else(damaged)?, len)
            }
            _ => return Err(damaged()),
        }))
    }
}

fn decode(part: Part) -> io::Result<zstd::stream::read::Decoder<'static, BufReader<Part>>> {
    zstd::stream::read::Decoder::new(part)
}

impl Read for Rebuild {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if to.is_empty() {
            return Ok(0);
        }
        while matches!(self.current, Step::Raw(0) | Step::File(_, 0)) {
            let Some(step) = self.step()? else {
                return Ok(0);
            };
            self.current = step;
        }
        let (Step::Raw(left) | Step::File(_, left)) = self.current;
        let most = to.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let to = to.get_mut(..most).unwrap_or_default();
        let n = match self.current {
            Step::Raw(_) => self.steps.read(to)?,
            Step::File(at, _) => self.file.read_at(to, at)?,
        };
        // Neither ends within a step.
        if n == 0 {
            return Err(damaged());
        }
        match &mut self.current {
            Step::Raw(left) => *left -= n as u64,
            Step::File(at, left) => {
                *at += n as u64;
                *left -= n as u64;
            }
        }
        Ok(n)
    }
}

fn array<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn damaged() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "what the layer's file says of its tar is damaged",
    )
}
