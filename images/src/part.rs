//! A part of a file as a stream, whoever else reads or writes elsewhere in it.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt as _,
};

/// Reads a part of a file from its beginning to its end.
#[derive(Debug)]
pub(crate) struct Part {
    file: File,
    at: u64,
    left: u64,
}

impl Part {
    /// `len` bytes from byte `at` on.
    pub(crate) fn new(file: File, at: u64, len: u64) -> Self {
        Self {
            file,
            at,
            left: len,
        }
    }
}

impl Read for Part {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let most = to
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let to = to.get_mut(..most).unwrap_or_default();
        let n = self.file.read_at(to, self.at)?;
        self.at += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}
