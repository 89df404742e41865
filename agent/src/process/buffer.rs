//! One output stream of a process, kept until the daemon has it safe. Offsets count bytes since
//! the start of the stream. Bounded: a full buffer makes its pump stop reading from the process.
//! No descriptors here.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::mutex::lock;

/// How much unacknowledged output one stream may hold.
pub const CAPACITY: usize = 1 << 20;
/// How many pieces: a process that writes single bytes must not cost a megabyte of bookkeeping.
const MAX_PIECES: usize = 8192;

/// A piece of output as it was read from the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Bytes of the stream before this piece.
    pub offset: u64,
    /// What was read.
    pub data: Bytes,
    /// When, CLOCK_REALTIME.
    pub time_unix_ns: i64,
}

/// What a reader finds at an offset.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// Output from exactly that offset on.
    Data(Piece),
    /// Nothing yet.
    Pending,
    /// Nothing, and nothing will come.
    Finished,
    /// The offset lies before what is kept.
    Forgotten {
        /// The first offset still kept.
        kept_from: u64,
    },
    /// The offset lies beyond what the process has written.
    Beyond {
        /// The end of the stream so far.
        end: u64,
    },
}

#[derive(Debug, Default)]
struct Inner {
    pieces: VecDeque<Piece>,
    acknowledged: u64,
    end: u64,
    finished: bool,
}

impl Inner {
    fn held(&self) -> usize {
        let first = self.pieces.front().map_or(self.end, |piece| piece.offset);
        usize::try_from(self.end - first).unwrap_or(usize::MAX)
    }
}

/// The buffer: one writer (the pump), any number of readers.
#[derive(Debug, Default)]
pub struct StreamBuffer {
    inner: Mutex<Inner>,
    // Two signals, because the pump waits for room and readers wait for data.
    grown: Notify,
    shrunk: Notify,
}

impl StreamBuffer {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    /// How many bytes may be pushed now.
    pub fn room(&self) -> usize {
        let inner = self.lock();
        if inner.pieces.len() >= MAX_PIECES {
            0
        } else {
            CAPACITY.saturating_sub(inner.held())
        }
    }

    /// Waits until something may be pushed.
    pub async fn wait_room(&self) -> usize {
        loop {
            let shrunk = self.shrunk.notified();
            match self.room() {
                0 => shrunk.await,
                room => return room,
            }
        }
    }

    /// Appends output.
    pub fn push(&self, data: Bytes, time_unix_ns: i64) {
        if data.is_empty() {
            return;
        }
        let mut inner = self.lock();
        let offset = inner.end;
        inner.end += data.len() as u64;
        inner.pieces.push_back(Piece {
            offset,
            data,
            time_unix_ns,
        });
        drop(inner);
        self.grown.notify_waiters();
    }

    /// Says that nothing more will come.
    pub fn finish(&self) {
        self.lock().finished = true;
        self.grown.notify_waiters();
    }

    /// Forgets everything before `offset`; an offset beyond the end acknowledges all there is.
    pub fn acknowledge(&self, offset: u64) {
        let mut inner = self.lock();
        inner.acknowledged = inner.acknowledged.max(offset.min(inner.end));
        let acknowledged = inner.acknowledged;
        while let Some(first) = inner.pieces.front() {
            // Whole pieces only: a half-acknowledged one costs at most one read's worth.
            if first.offset + first.data.len() as u64 > acknowledged {
                break;
            }
            inner.pieces.pop_front();
        }
        drop(inner);
        self.shrunk.notify_waiters();
    }

    /// What is there at `offset`.
    pub fn read(&self, offset: u64) -> Read {
        let inner = self.lock();
        if offset > inner.end {
            return Read::Beyond { end: inner.end };
        }
        if offset == inner.end {
            return if inner.finished {
                Read::Finished
            } else {
                Read::Pending
            };
        }
        let index = inner.pieces.partition_point(|piece| piece.offset <= offset);
        let piece = index
            .checked_sub(1)
            .and_then(|index| inner.pieces.get(index));
        let Some(piece) = piece else {
            let kept_from = inner.pieces.front().map_or(inner.end, |piece| piece.offset);
            return Read::Forgotten { kept_from };
        };
        let skip = usize::try_from(offset - piece.offset).unwrap_or(usize::MAX);
        let skip = skip.min(piece.data.len());
        Read::Data(Piece {
            offset,
            data: piece.data.slice(skip..),
            time_unix_ns: piece.time_unix_ns,
        })
    }

    /// Like [`read`](Self::read), but waits instead of answering [`Read::Pending`].
    pub async fn wait_read(&self, offset: u64) -> Read {
        loop {
            let grown = self.grown.notified();
            match self.read(offset) {
                Read::Pending => grown.await,
                found => return found,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn data(read: Read) -> Bytes {
        match read {
            Read::Data(piece) => piece.data,
            other => panic!("no data: {other:?}"),
        }
    }

    #[test]
    fn a_reader_can_start_in_the_middle_of_a_piece() {
        let buffer = StreamBuffer::default();
        buffer.push(Bytes::from_static(b"hello "), 1);
        buffer.push(Bytes::from_static(b"world"), 2);
        assert_eq!(data(buffer.read(3)), "lo ");
        assert_eq!(data(buffer.read(6)), "world");
        assert_eq!(buffer.read(11), Read::Pending);
        buffer.finish();
        assert_eq!(buffer.read(11), Read::Finished);
        assert_eq!(buffer.read(12), Read::Beyond { end: 11 });
    }

    #[test]
    fn acknowledged_output_is_forgotten_and_makes_room() {
        let buffer = StreamBuffer::default();
        buffer.push(Bytes::from(vec![7; CAPACITY]), 1);
        assert_eq!(buffer.room(), 0);
        buffer.acknowledge(u64::MAX);
        assert_eq!(buffer.room(), CAPACITY);
        assert_eq!(
            buffer.read(0),
            Read::Forgotten {
                kept_from: CAPACITY as u64
            }
        );
    }

    #[test]
    fn many_tiny_pieces_fill_the_buffer() {
        let buffer = StreamBuffer::default();
        for _ in 0..MAX_PIECES {
            buffer.push(Bytes::from_static(b"x"), 0);
        }
        assert_eq!(buffer.room(), 0);
    }

    proptest! {
        // Whatever the sizes of writes and the acknowledgements between them, a reader that goes
        // on where it stopped sees every byte once.
        #[test]
        fn nothing_is_lost_or_doubled(
            writes in prop::collection::vec((1usize..200, any::<bool>()), 1..60)
        ) {
            let buffer = StreamBuffer::default();
            let (mut written, mut seen, mut at) = (Vec::new(), Vec::new(), 0u64);
            for (length, read_now) in writes {
                let bytes: Vec<u8> =
                    (0..length).map(|i| u8::try_from((written.len() + i) % 251).unwrap()).collect();
                written.extend_from_slice(&bytes);
                buffer.push(bytes.into(), 0);
                if read_now {
                    let piece = data(buffer.read(at));
                    at += piece.len() as u64;
                    seen.extend_from_slice(&piece);
                    buffer.acknowledge(at);
                }
            }
            buffer.finish();
            while buffer.read(at) != Read::Finished {
                let piece = data(buffer.read(at));
                at += piece.len() as u64;
                seen.extend_from_slice(&piece);
            }
            prop_assert_eq!(seen, written);
        }
    }
}
