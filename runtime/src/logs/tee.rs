//! Copies of a container's output for those who are attached to it. A copy never costs the log: who
//! does not take it holds the container up for a while, as a slow reader of a pipe would, and is then
//! let go.

use std::{mem, time::Duration};

use bulkhead_proto::agent::Stream;
use bytes::{Bytes, BytesMut};
use futures::future::join_all;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout_at},
};

use super::Offsets;

/// How long a reader may take for what has come at one time.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pieces one reader has waiting, of at most [`PIECE`] bytes.
const WAITING: usize = 8;
/// Neighbours are joined up to this size: single bytes are not handed over one by one.
const PIECE: usize = 64 * 1024;

/// What a reader gets.
#[derive(Debug)]
pub enum Copied {
    /// Output.
    Data(Stream, Bytes),
    /// It took too long, and gets no more.
    TooSlow,
}

/// One reader's copy, from its subscription on.
#[derive(Debug)]
pub struct OutputCopy {
    pieces: mpsc::Receiver<(Stream, Bytes)>,
    too_slow: watch::Receiver<bool>,
    reported: bool,
}

impl OutputCopy {
    /// What comes next; `None` when the output has ended.
    pub async fn next(&mut self) -> Option<Copied> {
        if let Some((stream, data)) = self.pieces.recv().await {
            return Some(Copied::Data(stream, data));
        }
        let late = *self.too_slow.borrow() && !self.reported;
        self.reported = true;
        late.then_some(Copied::TooSlow)
    }
}

/// The pump's end of one copy.
#[derive(Debug)]
pub(super) struct Reader {
    pieces: mpsc::Sender<(Stream, Bytes)>,
    too_slow: watch::Sender<bool>,
}

/// Both ends of a copy.
pub(super) fn copy() -> (Reader, OutputCopy) {
    let (pieces, taken) = mpsc::channel(WAITING);
    let (too_slow, is_too_slow) = watch::channel(false);
    let reader = Reader { pieces, too_slow };
    let copy = OutputCopy {
        pieces: taken,
        too_slow: is_too_slow,
        reported: false,
    };
    (reader, copy)
}

/// All readers of one container's output.
#[derive(Debug, Default)]
pub(super) struct Tee {
    readers: Vec<Reader>,
    /// What came since the last delivery.
    fresh: Vec<(Stream, BytesMut)>,
    /// How far the readers are: after a broken connection to the agent some of it comes again.
    copied: Offsets,
}

impl Tee {
    /// From the next piece on.
    pub(super) fn add(&mut self, reader: Reader) {
        self.readers.push(reader);
    }

    /// Takes note of output at its offset; copies only if somebody is there.
    pub(super) fn feed(&mut self, stream: Stream, offset: u64, data: &Bytes) {
        let copied = match stream {
            Stream::Stdout => &mut self.copied.stdout,
            Stream::Stderr => &mut self.copied.stderr,
        };
        let skip = usize::try_from(copied.saturating_sub(offset)).unwrap_or(usize::MAX);
        let fresh = data.get(skip..).unwrap_or_default();
        *copied = (*copied).max(offset.saturating_add(data.len() as u64));
        if self.readers.is_empty() || fresh.is_empty() {
            return;
        }
        match self.fresh.last_mut() {
            Some((last, bytes)) if *last == stream && bytes.len() + fresh.len() <= PIECE => {
                bytes.extend_from_slice(fresh);
            }
            _ => self.fresh.push((stream, BytesMut::from(fresh))),
        }
    }

    /// Hands over what came; readers that are gone or too slow are forgotten.
    pub(super) async fn deliver(&mut self) {
        self.deliver_within(PATIENCE).await;
    }

    async fn deliver_within(&mut self, limit: Duration) {
        if self.fresh.is_empty() {
            return;
        }
        let fresh: Vec<(Stream, Bytes)> = mem::take(&mut self.fresh)
            .into_iter()
            .map(|(stream, bytes)| (stream, bytes.freeze()))
            .collect();
        let deadline = Instant::now() + limit;
        let fresh = &fresh;
        let deliveries = mem::take(&mut self.readers)
            .into_iter()
            .map(|reader| async move {
                for (stream, data) in fresh {
                    let piece = (*stream, data.clone());
                    match timeout_at(deadline, reader.pieces.send(piece)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(_)) => return None,
                        Err(_) => {
                            reader.too_slow.send_replace(true);
                            return None;
                        }
                    }
                }
                Some(reader)
            });
        self.readers = join_all(deliveries).await.into_iter().flatten().collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(copied: Option<Copied>) -> (Stream, Bytes) {
        match copied {
            Some(Copied::Data(stream, data)) => (stream, data),
            other => panic!("no data: {other:?}"),
        }
    }

    #[tokio::test]
    async fn what_comes_again_is_copied_once() {
        let mut tee = Tee::default();
        tee.feed(Stream::Stdout, 0, &Bytes::from_static(b"before"));
        let (reader, mut copy) = copy();
        tee.add(reader);
        tee.feed(Stream::Stdout, 0, &Bytes::from_static(b"before, "));
        tee.feed(Stream::Stdout, 8, &Bytes::from_static(b"after"));
        tee.feed(Stream::Stderr, 0, &Bytes::from_static(b"error"));
        tee.deliver().await;
        assert_eq!(data(copy.next().await), (Stream::Stdout, ", after".into()));
        assert_eq!(data(copy.next().await), (Stream::Stderr, "error".into()));
        drop(tee);
        assert!(copy.next().await.is_none());
    }

    #[tokio::test]
    async fn a_reader_that_does_not_take_is_let_go_and_others_are_not() {
        let mut tee = Tee::default();
        let (slow, mut left) = copy();
        let (quick, mut good) = copy();
        tee.add(slow);
        tee.add(quick);
        let piece = Bytes::from(vec![7; PIECE]);
        let reading = tokio::spawn(async move {
            let mut bytes = 0;
            while let Some(Copied::Data(_, data)) = good.next().await {
                bytes += data.len();
            }
            bytes
        });
        for n in 0..20 {
            tee.feed(Stream::Stdout, n * PIECE as u64, &piece);
            tee.deliver_within(Duration::from_secs(1)).await;
        }
        drop(tee);
        assert_eq!(reading.await.unwrap(), 20 * PIECE);
        for _ in 0..WAITING {
            data(left.next().await);
        }
        assert!(matches!(left.next().await, Some(Copied::TooSlow)));
        assert!(left.next().await.is_none());
    }
}
