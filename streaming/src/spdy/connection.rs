//! A SPDY/3.1 connection of a client: one task reads, one writes, and streams are handed to whoever
//! serves them.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use bulkhead_common::lock;
use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::{Semaphore, mpsc, oneshot, watch},
    task::JoinSet,
};

use super::{
    frame::{self, Event, FrameError, Parser, Reset},
    headers::{HeaderError, Headers, Packer, Unpacker},
};
use crate::{
    channel::{self, Activity, BUDGET, Connection, Feeder, Incoming, Item, Live, Outgoing, QUEUE},
    hangup::HangUp,
    settings::Timeouts,
};

const READ_SIZE: usize = 64 * 1024;
/// Answers on their way to the client.
const ANSWERS: usize = 64;
/// How long an answer may wait for the client to read.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// A ping of ours; the client's are odd. Sent behind the last output, its answer is the receipt.
const RECEIPT: u32 = 2;

/// Who waits for the client's answer to [`RECEIPT`].
type Receipt = Arc<Mutex<Option<oneshot::Sender<()>>>>;

/// What a connection may have.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Streams at one time; more are refused.
    pub streams: usize,
    /// How long the client is waited for.
    pub timeouts: Timeouts,
}

/// A stream a client has opened.
#[derive(Debug)]
pub struct Stream {
    /// Its number.
    pub id: u32,
    /// What the client says it is.
    pub headers: Headers,
    /// From the client.
    pub incoming: Incoming,
    /// To the client.
    pub outgoing: Outgoing,
}

/// Says of a stream's headers whether it is wanted.
pub type Admit = Box<dyn Fn(&Headers) -> bool + Send + Sync>;

/// Why a connection ended from this side.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Headers(#[from] HeaderError),
    #[error("stream {0} is no new stream of a client")]
    StreamId(u32),
    #[error("the client does not read the answers to what it sends")]
    Deaf,
    #[error("the connection fails: {0}")]
    Io(#[from] std::io::Error),
}

/// Serves a connection. New streams come out of the receiver; the tasks live as long as the connection.
pub fn serve<S>(
    io: S,
    limits: Limits,
    hang_up: HangUp,
    admit: Admit,
) -> (Connection, mpsc::Receiver<Stream>)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (read, write) = tokio::io::split(io);
    let (queue, items) = mpsc::channel(QUEUE);
    let (answers, to_answer) = mpsc::channel(ANSWERS);
    let (opened, streams) = mpsc::channel(1);
    let (gone, is_gone) = watch::channel(false);
    let activity = Activity::new();
    let receipt = Receipt::default();
    let reader = Reader {
        parser: Parser::default(),
        unpacker: Unpacker::default(),
        streams: HashMap::new(),
        last: 0,
        places: Arc::new(Semaphore::new(limits.streams)),
        limit: limits.streams,
        budget: Arc::new(Semaphore::new(BUDGET)),
        queue: queue.clone(),
        answers,
        opened,
        admit,
        hang_up,
        activity: activity.clone(),
        receipt: Arc::clone(&receipt),
    };
    let mut tasks = JoinSet::new();
    let told = gone.clone();
    tasks.spawn(async move {
        match reader.run(read).await {
            Ok(()) => {}
            Err(error) => tracing::debug!(%error, "a streaming connection is broken off"),
        }
        told.send_replace(true);
    });
    let (told, noted) = (gone.clone(), activity.clone());
    tasks.spawn(async move {
        if let Err(error) = write_all(write, to_answer, items, noted, receipt).await {
            tracing::debug!(%error, "a streaming client takes no more");
        }
        told.send_replace(true);
    });
    tasks.spawn(async move {
        activity.idle_for(limits.timeouts.idle).await;
        tracing::debug!("a streaming connection was silent for too long");
        gone.send_replace(true);
    });
    (
        Connection::new(queue, is_gone, limits.timeouts, tasks),
        streams,
    )
}

/// What the reader has to say. Before output, so that it does not wait behind it.
#[derive(Debug)]
enum Answer {
    Reply(u32),
    Refuse(u32, Reset),
    Pong(u32),
    GoAway(u32),
}

struct Reader {
    parser: Parser,
    unpacker: Unpacker,
    streams: HashMap<u32, Feeder>,
    last: u32,
    places: Arc<Semaphore>,
    limit: usize,
    budget: Arc<Semaphore>,
    queue: mpsc::Sender<Item>,
    answers: mpsc::Sender<Answer>,
    opened: mpsc::Sender<Stream>,
    admit: Admit,
    hang_up: HangUp,
    activity: Activity,
    receipt: Receipt,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("last", &self.last).finish()
    }
}

impl Reader {
    async fn run<R: AsyncRead + Unpin>(mut self, mut read: R) -> Result<(), Broken> {
        let mut input = BytesMut::new();
        loop {
            loop {
                match self.parser.next(&mut input) {
                    Ok(Some(event)) => match self.handle(event).await {
                        Ok(true) => {}
                        Ok(false) => return Ok(()),
                        Err(broken) => return Err(self.tell(broken).await),
                    },
                    Ok(None) => break,
                    Err(error) => return Err(self.tell(error.into()).await),
                }
            }
            input.reserve(READ_SIZE);
            if read.read_buf(&mut input).await? == 0 {
                return Ok(());
            }
            self.activity.note();
        }
    }

    /// A last word to a client that broke the rules.
    async fn tell(&self, broken: Broken) -> Broken {
        let _late = self.answer(Answer::GoAway(self.last)).await;
        broken
    }

    async fn answer(&self, answer: Answer) -> Result<(), Broken> {
        self.answers
            .send_timeout(answer, ANSWER_DEADLINE)
            .await
            .map_err(|_| Broken::Deaf)
    }

    /// False when the client has hung up meanwhile.
    async fn handle(&mut self, event: Event) -> Result<bool, Broken> {
        match event {
            Event::SynStream {
                id,
                fin,
                unidirectional,
                headers,
            } => {
                let headers = self.unpacker.unpack(&headers)?;
                if id % 2 == 0 || id <= self.last {
                    return Err(Broken::StreamId(id));
                }
                self.last = id;
                let reset = if unidirectional || !(self.admit)(&headers) {
                    Some(Reset::Refused)
                } else {
                    self.open(id, fin, headers).await?
                };
                if let Some(reset) = reset {
                    self.answer(Answer::Refuse(id, reset)).await?;
                }
            }
            Event::Data { id, data, fin } => {
                if let Some(feeder) = self.streams.get(&id) {
                    // What comes for a stream that nobody reads is dropped.
                    let open = if data.is_empty() {
                        !feeder.is_closed()
                    } else {
                        tokio::select! {
                            open = feeder.push(data) => open,
                            () = self.hang_up.wait() => return Ok(false),
                        }
                    };
                    if fin || !open {
                        self.streams.remove(&id);
                    }
                }
            }
            Event::Rst { id, .. } => {
                if let Some(feeder) = self.streams.remove(&id) {
                    feeder.reset();
                }
            }
            // Dropped if the client does not read: it does not miss it then.
            Event::Ping { id } if id % 2 == 1 => {
                let _full = self.answers.try_send(Answer::Pong(id));
            }
            Event::Ping { id: RECEIPT } => {
                let waiting = lock(&self.receipt).take();
                // Nobody waits any more: fine.
                let _told = waiting.map(|waiting| waiting.send(()));
            }
            Event::SynReply { headers, .. } => drop(self.unpacker.unpack(&headers)?),
            Event::Headers { id, fin, headers } => {
                self.unpacker.unpack(&headers)?;
                if fin {
                    self.streams.remove(&id);
                }
            }
            Event::Ping { .. } | Event::GoAway | Event::Ignored => {}
        }
        Ok(true)
    }

    async fn open(
        &mut self,
        id: u32,
        fin: bool,
        headers: Headers,
    ) -> Result<Option<Reset>, Broken> {
        if self.streams.len() >= self.limit {
            self.streams.retain(|_, feeder| !feeder.is_closed());
        }
        let live = Live::take(&self.places).filter(|_| self.streams.len() < self.limit);
        let Some(live) = live else {
            return Ok(Some(Reset::Refused));
        };
        let (feeder, incoming, outgoing) =
            channel::stream(id, &self.queue, &self.budget, Some(live));
        if self.opened.is_closed() {
            return Ok(Some(Reset::Refused));
        }
        // The reply goes first: what serves the stream may write at once.
        self.answer(Answer::Reply(id)).await?;
        if !fin {
            self.streams.insert(id, feeder);
        }
        let stream = Stream {
            id,
            headers,
            incoming,
            outgoing,
        };
        if self.opened.send(stream).await.is_err() {
            self.streams.remove(&id);
            return Ok(Some(Reset::Cancel));
        }
        Ok(None)
    }
}

async fn write_all<W: AsyncWrite + Unpin>(
    mut write: W,
    mut answers: mpsc::Receiver<Answer>,
    mut items: mpsc::Receiver<Item>,
    activity: Activity,
    receipt: Receipt,
) -> std::io::Result<()> {
    let mut packer = Packer::new().map_err(std::io::Error::other)?;
    loop {
        tokio::select! {
            biased;
            Some(answer) = answers.recv() => {
                let bytes = match answer {
                    Answer::Reply(id) => {
                        let headers = packer.pack(&[]).map_err(std::io::Error::other)?;
                        frame::syn_reply(id, &headers)
                    }
                    Answer::Refuse(id, why) => frame::rst_stream(id, why),
                    Answer::Pong(id) => frame::ping(id),
                    Answer::GoAway(last) => frame::go_away(last, 1),
                };
                write.write_all(&bytes).await?;
            }
            Some(item) = items.recv() => match item {
                Item::Data { id, data } => {
                    let header = frame::data_header(id, false, data.len());
                    write.write_all_buf(&mut Buf::chain(header.as_slice(), data)).await?;
                }
                Item::Fin { id } => {
                    write.write_all(&frame::data_header(id, true, 0)).await?;
                }
                Item::Reset { id, why } => {
                    write.write_all(&frame::rst_stream(id, why)).await?;
                }
                Item::Received(told) => {
                    *lock(&receipt) = Some(told);
                    write.write_all(&frame::ping(RECEIPT)).await?;
                }
            },
            else => return Ok(()),
        }
        write.flush().await?;
        activity.note();
    }
}
