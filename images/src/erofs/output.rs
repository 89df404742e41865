//! The image file while it is written: appending in large writes, holes, late patches.

use std::io::{self, Seek, SeekFrom, Write};

use super::format::{BLOCK, BLOCK_SIZE};
use super::inode::WriterError;

/// Bytes collected before they are written.
const BUFFER: usize = 1 << 20;

/// An append position on a file, with a limit.
#[derive(Debug)]
pub(super) struct Output<W> {
    inner: W,
    buffer: Vec<u8>,
    /// Length of the image so far, buffered bytes included.
    pos: u64,
    limit: u64,
}

impl<W: Write + Seek> Output<W> {
    /// `limit` is the greatest length the image may reach.
    pub(super) fn new(inner: W, limit: u64) -> Self {
        // Block addresses have 32 bits, and the last value means "no block".
        let limit = limit.min((u64::from(u32::MAX) - 1) * BLOCK_SIZE);
        Self {
            inner,
            buffer: Vec::with_capacity(BUFFER),
            pos: 0,
            limit,
        }
    }

    pub(super) fn pos(&self) -> u64 {
        self.pos
    }

    /// The block that starts at the current position, which must be a block boundary.
    pub(super) fn block(&self) -> u32 {
        debug_assert_eq!(self.pos % BLOCK_SIZE, 0);
        // `advance` holds the position below 2^32 blocks.
        u32::try_from(self.pos / BLOCK_SIZE).unwrap_or(u32::MAX)
    }

    pub(super) fn append(&mut self, data: &[u8]) -> Result<(), WriterError> {
        self.advance(data.len() as u64)?;
        if self.buffer.len() + data.len() > BUFFER {
            self.drain()?;
        }
        if data.len() >= BUFFER {
            self.inner.write_all(data)?;
        } else {
            self.buffer.extend_from_slice(data);
        }
        Ok(())
    }

    /// Appends zeros: a hole in the file when they are many.
    pub(super) fn skip(&mut self, len: u64) -> Result<(), WriterError> {
        if let Ok(short) = usize::try_from(len)
            && short <= 4 * BLOCK
        {
            self.advance(len)?;
            if self.buffer.len() + short > BUFFER {
                self.drain()?;
            }
            self.buffer.resize(self.buffer.len() + short, 0);
            return Ok(());
        }
        self.advance(len)?;
        self.drain()?;
        self.inner.seek(SeekFrom::Start(self.pos))?;
        Ok(())
    }

    /// Appends zeros up to a block boundary.
    pub(super) fn align(&mut self) -> Result<(), WriterError> {
        self.skip(self.pos.next_multiple_of(BLOCK_SIZE) - self.pos)
    }

    /// Ends appending and overwrites `patches` (offset, bytes) of what was written.
    pub(super) fn finish(
        mut self,
        patches: impl IntoIterator<Item = (u64, Vec<u8>)>,
    ) -> Result<W, WriterError> {
        self.drain()?;
        for (offset, bytes) in patches {
            self.inner.seek(SeekFrom::Start(offset))?;
            self.inner.write_all(&bytes)?;
        }
        self.inner.flush()?;
        Ok(self.inner)
    }

    fn advance(&mut self, len: u64) -> Result<(), WriterError> {
        match self.pos.checked_add(len) {
            Some(end) if end <= self.limit => {
                self.pos = end;
                Ok(())
            }
            _ => Err(WriterError::TooLarge { limit: self.limit }),
        }
    }

    fn drain(&mut self) -> io::Result<()> {
        self.inner.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
}
