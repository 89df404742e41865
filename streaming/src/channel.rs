//! The streams of one client connection, whatever it speaks: what comes in ([`Incoming`]), what
//! goes out ([`Outgoing`]), and the whole ([`Connection`]). All queues are bounded: a reader that is slow
//! holds the client up, a client that is slow holds the writer up.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    task::JoinSet,
    time::Instant,
};

use crate::{settings::Timeouts, spdy::frame::Reset};

/// Bytes a connection's streams hold that nobody has taken yet, together.
pub const BUDGET: usize = 1 << 20;
/// Pieces one stream holds; many small ones must not cost more than their bytes.
const PIECES: usize = 64;
/// Pieces of output on their way to the client, of at most [`PIECE`] bytes.
pub(crate) const QUEUE: usize = 4;
/// The most bytes in one piece.
pub(crate) const PIECE: usize = 256 * 1024;

/// The client is gone, or has ended the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client has ended the stream")]
pub struct Gone;

/// Counts a stream for as long as either of its ends is held.
#[derive(Debug)]
pub(crate) struct Live(Arc<Semaphore>);

impl Live {
    /// Takes one of the free places.
    pub(crate) fn take(places: &Arc<Semaphore>) -> Option<Arc<Self>> {
        let permit = places.try_acquire().ok()?;
        permit.forget();
        Some(Arc::new(Self(Arc::clone(places))))
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.add_permits(1);
    }
}

#[derive(Debug)]
pub(crate) struct Piece {
    data: Bytes,
    /// Given back when the piece is taken.
    _held: OwnedSemaphorePermit,
}

/// The connection's end of an incoming stream.
#[derive(Debug)]
pub(crate) struct Feeder {
    pieces: mpsc::Sender<Piece>,
    budget: Arc<Semaphore>,
    reset: Arc<AtomicBool>,
}

impl Feeder {
    /// Waits for room. False if nobody takes from the stream any more.
    pub(crate) async fn push(&self, data: Bytes) -> bool {
        let Ok(bytes) = u32::try_from(data.len()) else {
            return false;
        };
        let held = tokio::select! {
            held = Arc::clone(&self.budget).acquire_many_owned(bytes) => held,
            () = self.pieces.closed() => return false,
        };
        let Ok(held) = held else { return false };
        let piece = Piece { data, _held: held };
        self.pieces.send(piece).await.is_ok()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.pieces.is_closed()
    }

    /// The client broke the stream off; the end of the feeder is no proper end.
    pub(crate) fn reset(&self) {
        self.reset.store(true, Ordering::Relaxed);
    }
}

/// What comes from the client in one stream.
#[derive(Debug)]
pub struct Incoming {
    pieces: mpsc::Receiver<Piece>,
    reset: Arc<AtomicBool>,
    _live: Option<Arc<Live>>,
}

impl Incoming {
    /// The next piece; `None` at the stream's end.
    pub async fn next(&mut self) -> Option<Bytes> {
        self.pieces.recv().await.map(|piece| piece.data)
    }

    /// Whether the client broke the stream off instead of ending it.
    pub fn was_reset(&self) -> bool {
        self.reset.load(Ordering::Relaxed)
    }
}

/// What the connection's writer is given.
#[derive(Debug)]
pub(crate) enum Item {
    Data {
        id: u32,
        data: Bytes,
    },
    Fin {
        id: u32,
    },
    Reset {
        id: u32,
        why: Reset,
    },
    /// Everything before is with the client, as far as its protocol can tell.
    Received(oneshot::Sender<()>),
}

/// What goes to the client in one stream.
#[derive(Debug, Clone)]
pub struct Outgoing {
    id: u32,
    queue: mpsc::Sender<Item>,
    reset: Arc<AtomicBool>,
    _live: Option<Arc<Live>>,
}

impl Outgoing {
    /// Sends bytes, waiting while the client does not read.
    pub async fn send(&self, mut data: Bytes) -> Result<(), Gone> {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(PIECE));
            self.item(Item::Data {
                id: self.id,
                data: piece,
            })
            .await?;
        }
        Ok(())
    }

    /// Sends a message without content, which opens a channel on some clients.
    pub(crate) async fn touch(&self) -> Result<(), Gone> {
        let data = Bytes::new();
        self.item(Item::Data { id: self.id, data }).await
    }

    /// Ends the stream in this direction.
    pub async fn finish(&self) {
        let _gone = self.item(Item::Fin { id: self.id }).await;
    }

    /// Ends the stream at once, both ways.
    pub async fn abort(&self, why: Reset) {
        let _gone = self.item(Item::Reset { id: self.id, why }).await;
    }

    async fn item(&self, item: Item) -> Result<(), Gone> {
        if self.reset.load(Ordering::Relaxed) {
            return Err(Gone);
        }
        self.queue.send(item).await.map_err(|_| Gone)
    }
}

/// Both ends of a new stream: for the connection, and for who works with it.
pub(crate) fn stream(
    id: u32,
    queue: &mpsc::Sender<Item>,
    budget: &Arc<Semaphore>,
    live: Option<Arc<Live>>,
) -> (Feeder, Incoming, Outgoing) {
    let (pieces, taken) = mpsc::channel(PIECES);
    let reset = Arc::new(AtomicBool::new(false));
    let feeder = Feeder {
        pieces,
        budget: Arc::clone(budget),
        reset: Arc::clone(&reset),
    };
    let incoming = Incoming {
        pieces: taken,
        reset: Arc::clone(&reset),
        _live: live.clone(),
    };
    let outgoing = Outgoing {
        id,
        queue: queue.clone(),
        reset,
        _live: live,
    };
    (feeder, incoming, outgoing)
}

/// When something last came or went.
#[derive(Debug, Clone)]
pub(crate) struct Activity {
    start: Instant,
    last_ms: Arc<AtomicU64>,
}

impl Activity {
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
            last_ms: Arc::default(),
        }
    }

    pub(crate) fn note(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(now, Ordering::Relaxed);
    }

    /// Returns once nothing has come or gone for so long.
    pub(crate) async fn idle_for(&self, limit: Duration) {
        loop {
            let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
            let due = self.start + last + limit;
            if due <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(due).await;
        }
    }
}

/// A connection with its tasks, which end when this is dropped.
#[derive(Debug)]
pub struct Connection {
    queue: mpsc::Sender<Item>,
    gone: watch::Receiver<bool>,
    timeouts: Timeouts,
    _tasks: JoinSet<()>,
}

impl Connection {
    pub(crate) fn new(
        queue: mpsc::Sender<Item>,
        gone: watch::Receiver<bool>,
        timeouts: Timeouts,
        tasks: JoinSet<()>,
    ) -> Self {
        Self {
            queue,
            gone,
            timeouts,
            _tasks: tasks,
        }
    }

    /// Returns when the client is gone, silent for too long, or has broken the rules.
    pub fn gone(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut gone = self.gone.clone();
        async move {
            // An error says that the connection's tasks are no more, which is the same.
            let _ended = gone.wait_for(|gone| *gone).await;
        }
    }

    /// Sees that the client gets everything that was sent, however slowly it reads, then gives it
    /// time to close: to close first, with something unread, could cost it the end of what it was
    /// sent (RFC 1122, §4.2.2.13). What is written is not yet read: megabytes wait in the sockets on
    /// the way, so that only the client itself can say.
    pub async fn finish(self) {
        let (received, told) = oneshot::channel();
        let flush = async {
            if self.queue.send(Item::Received(received)).await.is_ok() {
                let _gone = told.await;
            }
        };
        tokio::select! {
            _late = tokio::time::timeout(self.timeouts.idle, flush) => {}
            () = self.gone() => return,
        }
        let _late = tokio::time::timeout(self.timeouts.linger, self.gone()).await;
    }
}
