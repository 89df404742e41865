//! A WebSocket connection with channels: one task reads, one writes.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _, stream::SplitSink, stream::SplitStream};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

use super::codec::{ChannelMessage, Codec};
use crate::{
    channel::{self, Activity, BUDGET, Connection, Feeder, Incoming, Item, Outgoing, QUEUE},
    settings::Timeouts,
};

/// The longest message taken; clients send 32 KiB at a time.
const MAX_MESSAGE: usize = 4 << 20;

/// The settings of every connection.
pub(super) fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE))
        // What is written is on its way at once, and no more than a piece waits.
        .write_buffer_size(0)
        .max_write_buffer_size(1 << 20)
}

/// Channels, before the connection is served.
#[derive(Debug)]
pub(super) struct Channels {
    codec: Codec,
    feeders: HashMap<u8, Feeder>,
    queue: mpsc::Sender<Item>,
    items: mpsc::Receiver<Item>,
    budget: Arc<Semaphore>,
}

impl Channels {
    pub(super) fn new(codec: Codec) -> Self {
        let (queue, items) = mpsc::channel(QUEUE);
        Self {
            codec,
            feeders: HashMap::new(),
            queue,
            items,
            budget: Arc::new(Semaphore::new(BUDGET)),
        }
    }

    pub(super) fn open(&mut self, channel: u8) -> (Incoming, Outgoing) {
        let (feeder, incoming, outgoing) =
            channel::stream(channel.into(), &self.queue, &self.budget, None);
        self.feeders.insert(channel, feeder);
        (incoming, outgoing)
    }

    pub(super) async fn serve<S>(self, io: S, timeouts: Timeouts) -> Connection
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config())).await;
        let (sink, source) = socket.split();
        let (gone, is_gone) = watch::channel(false);
        let activity = Activity::new();
        let mut tasks = JoinSet::new();
        let (told, noted) = (gone.clone(), activity.clone());
        let (codec, feeders) = (self.codec, self.feeders);
        tasks.spawn(async move {
            if let Err(error) = read(source, codec, feeders, noted).await {
                tracing::debug!(error, "a WebSocket is broken off");
            }
            told.send_replace(true);
        });
        let (told, noted) = (gone.clone(), activity.clone());
        let items = self.items;
        tasks.spawn(async move {
            if let Err(error) = write(sink, codec, items, noted).await {
                tracing::debug!(%error, "a streaming client takes no more");
            }
            told.send_replace(true);
        });
        tasks.spawn(async move {
            activity.idle_for(timeouts.idle).await;
            gone.send_replace(true);
        });
        Connection::new(self.queue, is_gone, timeouts, tasks)
    }
}

/// To the client's close; the text of what broke it off.
async fn read<S>(
    mut source: SplitStream<WebSocketStream<S>>,
    codec: Codec,
    mut feeders: HashMap<u8, Feeder>,
    activity: Activity,
) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(message) = source.next().await {
        let message = message.map_err(|error| error.to_string())?;
        activity.note();
        match codec.read(&message).map_err(|error| error.to_string())? {
            ChannelMessage::Data(channel, data) => {
                if let Some(feeder) = feeders.get(&channel) {
                    let mut data: Bytes = data;
                    // Budgeted piece by piece: one message may be larger than the budget.
                    while !data.is_empty() {
                        let piece = data.split_to(data.len().min(channel::PIECE));
                        if !feeder.push(piece).await {
                            break;
                        }
                    }
                }
            }
            ChannelMessage::Closed(channel) => drop(feeders.remove(&channel)),
            ChannelMessage::Nothing => {}
        }
    }
    Ok(())
}

async fn write<S>(
    mut sink: SplitSink<WebSocketStream<S>, Message>,
    codec: Codec,
    mut items: mpsc::Receiver<Item>,
    activity: Activity,
) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let number = |id: u32| u8::try_from(id).unwrap_or(u8::MAX);
    while let Some(item) = items.recv().await {
        match item {
            Item::Data { id, data } => sink.send(codec.write(number(id), &data)).await?,
            Item::Fin { id } | Item::Reset { id, .. } => {
                if let Some(message) = codec.close(number(id)) {
                    sink.send(message).await?;
                }
            }
            Item::Received(told) => {
                let normal = CloseFrame {
                    code: CloseCode::Normal,
                    reason: "".into(),
                };
                let closed = sink.send(Message::Close(Some(normal))).await;
                return match closed {
                    Ok(()) | Err(Error::ConnectionClosed) => {
                        // The client closes in its turn when it has read everything, which the
                        // reader sees.
                        let _unanswered = told;
                        std::future::pending().await
                    }
                    Err(error) => Err(error),
                };
            }
        }
        activity.note();
    }
    Ok(())
}

/// A connection to one port, as older clients have it: two channels.
#[derive(Debug)]
pub(crate) struct Forwarded {
    pub(crate) port: u16,
    pub(crate) incoming: Incoming,
    pub(crate) data: Outgoing,
    pub(crate) error: Outgoing,
}

/// Port-forward without SPDY: the ports are fixed beforehand; channel 2n carries the data of the nth
/// port and 2n+1 its errors, each with the port's number first.
pub(crate) async fn forwards<S>(
    io: S,
    protocol: &'static str,
    ports: &[u16],
    timeouts: Timeouts,
) -> Option<(Connection, Vec<Forwarded>)>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut channels = Channels::new(Codec::of(protocol));
    let mut all = Vec::new();
    for (port, first) in ports.iter().zip((0u8..).step_by(2)) {
        let (incoming, data) = channels.open(first);
        let (_, error) = channels.open(first.checked_add(1)?);
        all.push(Forwarded {
            port: *port,
            incoming,
            data,
            error,
        });
    }
    let connection = channels.serve(io, timeouts).await;
    for one in &all {
        let number = Bytes::copy_from_slice(&one.port.to_le_bytes());
        one.data.send(number.clone()).await.ok()?;
        one.error.send(number).await.ok()?;
    }
    Some((connection, all))
}
