//! Header blocks of SPDY/3 (§2.6.10): names and values, compressed by zlib with a dictionary that
//! both sides know. One context per direction goes on through all blocks of a connection.
//!
//! A block is unpacked into a bounded buffer: a small block that unpacks to a large one (a "bomb")
//! ends the connection.

use std::sync::LazyLock;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::dictionary;

/// The most a block may unpack to.
pub const MAX_UNPACKED: usize = 16 * 1024;
/// The most headers in a block.
pub const MAX_COUNT: usize = 64;

static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(dictionary::bytes);

/// Names (lower case) and values, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, String)>);

impl Headers {
    /// The first value of a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        let mut all = self.0.iter();
        let found = all.find(|(key, _)| key.eq_ignore_ascii_case(name));
        // Several values are joined by NUL.
        found.and_then(|(_, value)| value.split('\0').next())
    }
}

/// A block that cannot be used. The context is broken then, and the connection with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Not zlib, or with another dictionary.
    #[error("a header block that does not unpack")]
    Compression,
    /// Too much comes out of it.
    #[error("a header block that unpacks to more than {MAX_UNPACKED} bytes")]
    TooLarge,
    /// Lengths that do not fit the block, too many headers, or text that is not UTF-8.
    #[error("a header block that cannot be read")]
    Malformed,
}

/// Unpacks the blocks of one direction.
#[derive(Debug)]
pub struct Unpacker {
    context: Decompress,
    buffer: Vec<u8>,
}

impl Default for Unpacker {
    fn default() -> Self {
        Self {
            context: Decompress::new(true),
            buffer: Vec::new(),
        }
    }
}

impl Unpacker {
    /// The next block of the connection.
    pub fn unpack(&mut self, block: &[u8]) -> Result<Headers, HeaderError> {
        self.buffer.clear();
        // One byte more than allowed shows that there is more.
        self.buffer.reserve_exact(MAX_UNPACKED + 1);
        let mut at = 0;
        while let Some(rest) = block.get(at..).filter(|rest| !rest.is_empty()) {
            let (read, written) = (self.context.total_in(), self.context.total_out());
            let step = self
                .context
                .decompress_vec(rest, &mut self.buffer, FlushDecompress::Sync);
            let consumed = usize::try_from(self.context.total_in() - read).unwrap_or(usize::MAX);
            at = at.saturating_add(consumed);
            if self.buffer.len() > MAX_UNPACKED {
                return Err(HeaderError::TooLarge);
            }
            match step {
                Ok(Status::Ok | Status::BufError) => {
                    if consumed == 0 && self.context.total_out() == written {
                        return Err(HeaderError::Compression);
                    }
                }
                // A connection's context never ends.
                Ok(Status::StreamEnd) => return Err(HeaderError::Compression),
                Err(error) if error.needs_dictionary().is_some() => {
                    self.context
                        .set_dictionary(&DICTIONARY)
                        .map_err(|_| HeaderError::Compression)?;
                }
                Err(_) => return Err(HeaderError::Compression),
            }
        }
        parse(&self.buffer)
    }
}

/// Reads an unpacked block.
pub fn parse(block: &[u8]) -> Result<Headers, HeaderError> {
    fn number(at: &mut &[u8]) -> Option<usize> {
        let (bytes, rest) = at.split_first_chunk::<4>()?;
        *at = rest;
        usize::try_from(u32::from_be_bytes(*bytes)).ok()
    }
    fn text(at: &mut &[u8]) -> Option<String> {
        let length = number(at)?;
        let (bytes, rest) = at.split_at_checked(length)?;
        *at = rest;
        String::from_utf8(bytes.to_vec()).ok()
    }
    let mut at = block;
    let count = number(&mut at).filter(|count| *count <= MAX_COUNT);
    let count = count.ok_or(HeaderError::Malformed)?;
    let mut headers = Vec::with_capacity(count);
    for _ in 0..count {
        let name = text(&mut at).filter(|name| !name.is_empty());
        let name = name.ok_or(HeaderError::Malformed)?;
        let value = text(&mut at).ok_or(HeaderError::Malformed)?;
        headers.push((name.to_ascii_lowercase(), value));
    }
    if at.is_empty() {
        Ok(Headers(headers))
    } else {
        Err(HeaderError::Malformed)
    }
}

/// Packs the blocks of one direction.
#[derive(Debug)]
pub struct Packer {
    context: Compress,
}

impl Packer {
    /// A fresh context.
    pub fn new() -> Result<Self, HeaderError> {
        let mut context = Compress::new(Compression::fast(), true);
        context
            .set_dictionary(&DICTIONARY)
            .map_err(|_| HeaderError::Compression)?;
        Ok(Self { context })
    }

    /// The next block of the connection.
    pub fn pack(&mut self, headers: &[(&str, &str)]) -> Result<Vec<u8>, HeaderError> {
        let mut plain = Vec::new();
        let number = |bytes: &mut Vec<u8>, n: usize| {
            bytes.extend_from_slice(&u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes());
        };
        number(&mut plain, headers.len());
        for (name, value) in headers {
            for text in [name, value] {
                number(&mut plain, text.len());
                plain.extend_from_slice(text.as_bytes());
            }
        }
        let mut packed = Vec::with_capacity(plain.len() + 64);
        let mut at = 0;
        loop {
            let before = self.context.total_in();
            packed.reserve(64);
            let rest = plain.get(at..).unwrap_or_default();
            self.context
                .compress_vec(rest, &mut packed, FlushCompress::Sync)
                .map_err(|_| HeaderError::Compression)?;
            at += usize::try_from(self.context.total_in() - before).unwrap_or(0);
            // Room left over means that all is flushed.
            if at >= plain.len() && packed.len() < packed.capacity() {
                return Ok(packed);
            }
        }
    }
}
