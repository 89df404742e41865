//! The byte stream of a layer: buffered, hashed, counted, limited.

use std::io::{ErrorKind, Read};

use sha2::{Digest, Sha256};

use super::error::LayerError;
use super::recipe::Recorder;
use crate::erofs::Piece;

/// Bytes read at once.
const BUFFER: usize = 256 << 10;
/// Progress is reported when this many bytes have been read since the last report.
const REPORT: u64 = 1 << 20;

/// How far a conversion is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the tar stream read.
    pub bytes: u64,
}

/// A stream that was read to its end.
#[derive(Debug)]
pub(super) struct Finished {
    /// How many bytes it had.
    pub bytes: u64,
    pub sha256: [u8; 32],
    pub recorder: Recorder,
}

/// A stream being read.
pub(super) struct Source<'p, R> {
    inner: R,
    buffer: Box<[u8]>,
    /// The part of the buffer that is filled and not consumed.
    start: usize,
    end: usize,
    hash: Sha256,
    /// Bytes read from `inner`.
    read: u64,
    limit: u64,
    reported: u64,
    progress: &'p mut dyn FnMut(Progress),
    recorder: Recorder,
}

impl<'p, R: Read> Source<'p, R> {
    pub(super) fn new(
        inner: R,
        limit: u64,
        progress: &'p mut dyn FnMut(Progress),
        recorder: Recorder,
    ) -> Self {
        Self {
            inner,
            recorder,
            buffer: vec![0; BUFFER].into_boxed_slice(),
            start: 0,
            end: 0,
            hash: Sha256::new(),
            read: 0,
            limit,
            reported: 0,
            progress,
        }
    }

    /// Bytes consumed so far.
    pub(super) fn offset(&self) -> u64 {
        self.read - (self.end - self.start) as u64
    }

    /// Bytes that may still come before the limit is reached.
    pub(super) fn left(&self) -> u64 {
        self.limit.saturating_sub(self.offset())
    }

    /// What is buffered, at least one byte unless the stream is at its end.
    pub(super) fn fill(&mut self) -> Result<&[u8], LayerError> {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
            let n = loop {
                match self.inner.read(&mut self.buffer) {
                    Ok(n) => break n.min(self.buffer.len()),
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(source) => {
                        return Err(LayerError::Input {
                            offset: self.read,
                            source,
                        });
                    }
                }
            };
            self.hash.update(self.buffer.get(..n).unwrap_or_default());
            self.end = n;
            self.read += n as u64;
            if self.read > self.limit {
                return Err(LayerError::Limit {
                    what: "bytes",
                    limit: self.limit,
                });
            }
            if self.read - self.reported >= REPORT {
                self.reported = self.read;
                (self.progress)(Progress { bytes: self.read });
            }
        }
        Ok(self.buffer.get(self.start..self.end).unwrap_or_default())
    }

    /// Marks bytes that [`Self::fill`] showed as used.
    pub(super) fn consume(&mut self, n: usize) -> Result<(), LayerError> {
        let end = self.end.min(self.start + n);
        let bytes = self.buffer.get(self.start..end).unwrap_or_default();
        self.start = end;
        self.recorder.raw(bytes)
    }

    /// Marks bytes as used that went into the image: [`Self::stored`] says where.
    pub(super) fn consume_data(&mut self, n: usize) {
        self.start = self.end.min(self.start + n);
    }

    /// Where the bytes are that were marked by [`Self::consume_data`].
    pub(super) fn stored(&mut self, pieces: &[Piece]) -> Result<(), LayerError> {
        self.recorder.stored(pieces)
    }

    /// The next 512 bytes. `None` at the end of the stream.
    pub(super) fn block(&mut self, what: &'static str) -> Result<Option<[u8; 512]>, LayerError> {
        let mut block = [0; 512];
        let mut have = 0;
        while have < block.len() {
            let offset = self.offset();
            let room = block.get_mut(have..).unwrap_or_default();
            let data = self.fill()?;
            if data.is_empty() {
                return if have == 0 {
                    Ok(None)
                } else {
                    Err(LayerError::Truncated { offset, what })
                };
            }
            let n = data.len().min(room.len());
            for (to, from) in room.iter_mut().zip(data) {
                *to = *from;
            }
            self.consume(n)?;
            have += n;
        }
        Ok(Some(block))
    }

    /// The next `len` bytes, which the caller has checked to be few.
    pub(super) fn take(&mut self, mut len: u64, what: &'static str) -> Result<Vec<u8>, LayerError> {
        let mut out = Vec::new();
        while len > 0 {
            let offset = self.offset();
            let data = self.fill()?;
            if data.is_empty() {
                return Err(LayerError::Truncated { offset, what });
            }
            let n = data.len().min(usize::try_from(len).unwrap_or(usize::MAX));
            out.extend_from_slice(data.get(..n).unwrap_or_default());
            self.consume(n)?;
            len -= n as u64;
        }
        Ok(out)
    }

    /// Passes over `len` bytes.
    pub(super) fn pass(&mut self, mut len: u64, what: &'static str) -> Result<(), LayerError> {
        while len > 0 {
            let offset = self.offset();
            let data = self.fill()?;
            if data.is_empty() {
                return Err(LayerError::Truncated { offset, what });
            }
            let n = data.len().min(usize::try_from(len).unwrap_or(usize::MAX));
            self.consume(n)?;
            len -= n as u64;
        }
        Ok(())
    }

    /// Reads to the end of the stream: whatever follows the archive is part of the digest.
    pub(super) fn finish(mut self) -> Result<Finished, LayerError> {
        loop {
            let n = self.fill()?.len();
            if n == 0 {
                break;
            }
            self.consume(n)?;
        }
        (self.progress)(Progress { bytes: self.read });
        Ok(Finished {
            bytes: self.read,
            sha256: self.hash.finalize().into(),
            recorder: self.recorder,
        })
    }
}
