//! Between a download on the async side and a conversion on a blocking thread: a bounded channel
//! that has a true end, and decompression by what the bytes are.
//!
//! The reader's end of file is only ever told after the whole blob was received and its digest
//! was right; a download that fails or is dropped is an error to the reader, never an end.

use std::{
    io::{self, BufRead, Read},
    sync::Arc,
};

use bytes::{Buf as _, Bytes};
use tokio::sync::mpsc;

use super::progress::LayerProgress;
use crate::registry::Sink;

/// Pieces in flight; each is what one read of the connection gave, at most some hundred KiB.
const IN_FLIGHT: usize = 16;

enum Piece {
    Data(Bytes),
    End,
}

/// The async end.
#[derive(Debug)]
pub(crate) struct Sender {
    pieces: mpsc::Sender<Piece>,
    progress: Option<Arc<LayerProgress>>,
}

/// The blocking end.
#[derive(Debug)]
pub(crate) struct Receiver {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
    ended: bool,
}

/// Both ends of a new channel.
pub(crate) fn channel(progress: Option<Arc<LayerProgress>>) -> (Sender, Receiver) {
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    let receiver = Receiver {
        pieces: receiver,
        current: Bytes::new(),
        ended: false,
    };
    (
        Sender {
            pieces: sender,
            progress,
        },
        receiver,
    )
}

impl Sender {
    /// Tells the end: all bytes were sent, and they are right.
    pub(crate) async fn end(self) -> bool {
        self.pieces.send(Piece::End).await.is_ok()
    }
}

impl Sink for Sender {
    async fn put(&mut self, bytes: Bytes) -> bool {
        if let Some(progress) = &self.progress {
            progress.add(bytes.len() as u64);
        }
        self.pieces.send(Piece::Data(bytes)).await.is_ok()
    }
}

impl BufRead for Receiver {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Piece::Data(bytes)) => self.current = bytes,
                Some(Piece::End) => self.ended = true,
                None => {
                    return Err(io::Error::new(
                        io::ErrorKind::ConnectionAborted,
                        "the download did not end well",
                    ));
                }
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        self.current.advance(amount.min(self.current.len()));
    }
}

impl Read for Receiver {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let from = self.fill_buf()?;
        let amount = from.len().min(to.len());
        if let (Some(to), Some(from)) = (to.get_mut(..amount), from.get(..amount)) {
            to.copy_from_slice(from);
        }
        self.consume(amount);
        Ok(amount)
    }
}

/// A blob, unpacked if it is packed.
pub(crate) enum Unpacked<R: BufRead> {
    /// Not packed.
    Plain(R),
    /// gzip, of one or more members.
    Gzip(Box<flate2::bufread::MultiGzDecoder<R>>),
    /// zstd, of one or more frames.
    Zstd(Box<zstd::stream::read::Decoder<'static, R>>),
}

/// Looks at the first bytes. Registries' media types are not always right; the diff_id is what
/// decides in the end.
pub(crate) fn unpack<R: BufRead>(reader: R) -> io::Result<Unpacked<Front<R>>> {
    let mut reader = Front {
        first: Vec::new(),
        at: 0,
        rest: reader,
    };
    while reader.first.len() < 4 {
        let buffer = reader.rest.fill_buf()?;
        if buffer.is_empty() {
            break;
        }
        let taken = buffer.len().min(4 - reader.first.len());
        reader.first.extend(buffer.iter().take(taken));
        reader.rest.consume(taken);
    }
    Ok(match reader.first.as_slice() {
        // RFC 1952 §2.3.1.
        [0x1f, 0x8b, ..] => Unpacked::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(reader))),
        // RFC 8878 §3.1.1, and §3.1.2: a skippable frame may come first.
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
            // The decoder's own window limit (128 MiB) bounds its memory.
            Unpacked::Zstd(Box::new(zstd::stream::read::Decoder::with_buffer(reader)?))
        }
        _ => Unpacked::Plain(reader),
    })
}

impl<R: BufRead> Read for Unpacked<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(reader) => reader.read(to),
            Self::Gzip(reader) => reader.read(to),
            Self::Zstd(reader) => reader.read(to),
        }
    }
}

impl<R: BufRead> Unpacked<R> {
    /// The packed side again, to read what stands behind the packed data.
    pub(crate) fn into_inner(self) -> R {
        match self {
            Self::Plain(reader) => reader,
            Self::Gzip(reader) => reader.into_inner(),
            Self::Zstd(reader) => reader.finish(),
        }
    }
}

/// A reader whose first bytes were taken out for a look.
#[derive(Debug)]
pub(crate) struct Front<R> {
    first: Vec<u8>,
    at: usize,
    rest: R,
}

impl<R: BufRead> BufRead for Front<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        match self.first.get(self.at..) {
            Some(first) if !first.is_empty() => Ok(first),
            _ => self.rest.fill_buf(),
        }
    }

    fn consume(&mut self, amount: usize) {
        if self.at < self.first.len() {
            self.at += amount.min(self.first.len() - self.at);
        } else {
            self.rest.consume(amount);
        }
    }
}

impl<R: BufRead> Read for Front<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let amount = self.fill_buf()?.read(to)?;
        self.consume(amount);
        Ok(amount)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::digest::Digest;

    fn unpacked(bytes: &[u8]) -> io::Result<Vec<u8>> {
        // One byte at a time, the worst a connection can do.
        let mut out = Vec::new();
        unpack(io::BufReader::with_capacity(1, bytes))?.read_to_end(&mut out)?;
        Ok(out)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packer.write_all(bytes).unwrap();
        packer.finish().unwrap()
    }

    #[test]
    fn packed_and_plain() {
        let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9].to_vec();
        for (packed, plain) in [
            (b"plain tar".to_vec(), b"plain tar".to_vec()),
            (b"".to_vec(), b"".to_vec()),
            (b"\x1f".to_vec(), b"\x1f".to_vec()),
            (gzip(b"hello"), b"hello".to_vec()),
            (
                [gzip(b"two "), gzip(b"members")].concat(),
                b"two members".to_vec(),
            ),
            (zstd(b"hello"), b"hello".to_vec()),
            (
                [zstd(b"two "), zstd(b"frames")].concat(),
                b"two frames".to_vec(),
            ),
            ([skippable, zstd(b"behind")].concat(), b"behind".to_vec()),
        ] {
            assert_eq!(unpacked(&packed).unwrap(), plain);
        }
        let mut cut = gzip(b"hello");
        cut.truncate(cut.len() - 3);
        assert!(unpacked(&cut).is_err());
    }

    #[test]
    fn a_dropped_download_is_no_end() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let progress = || Some(LayerProgress::new(&Digest::of(b""), 4));
        let read = |receiver: &mut Receiver| {
            let mut out = Vec::new();
            receiver.read_to_end(&mut out).map(|_| out)
        };

        let (mut sender, mut receiver) = channel(progress());
        assert!(runtime.block_on(sender.put(Bytes::from_static(b"half"))));
        drop(sender);
        let error = read(&mut receiver).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);

        let (mut sender, mut receiver) = channel(progress());
        assert!(runtime.block_on(sender.put(Bytes::from_static(b"all"))));
        assert!(runtime.block_on(sender.end()));
        assert_eq!(read(&mut receiver).unwrap(), b"all");
    }
}
