//! Port-forward: pairs of streams, one connection inside the pod for each.

use std::{collections::HashMap, sync::Arc};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::UnixStream,
    sync::mpsc,
    task::JoinSet,
    time::Instant,
};

use crate::{
    backend::Backend,
    channel::{Incoming, Outgoing, PIECE},
    hangup::HangUp,
    settings::Timeouts,
    spdy::{
        connection::{self, Limits, Stream},
        frame::Reset,
        headers::Headers,
    },
    target::PortForward,
    upgrade::{TUNNEL, Upgrade},
    websocket::{self, Forwarded},
};

/// Streams of one client: 256 connections at one time, each with a stream for its errors.
const STREAMS: usize = 512;

/// Serves one client to its end.
pub(crate) async fn serve<B, S>(
    backend: &Arc<B>,
    to: PortForward,
    upgrade: Upgrade,
    io: S,
    hang_up: HangUp,
    timeouts: Timeouts,
) where
    B: Backend,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match upgrade {
        Upgrade::Spdy(_) => pairs(backend, to, io, hang_up, timeouts).await,
        Upgrade::WebSocket { protocol, .. } if protocol == TUNNEL => {
            // What is read from the WebSocket is bounded, and its end is in what is read.
            let inner = websocket::tunnel(io).await;
            drop(hang_up);
            pairs(backend, to, inner, HangUp::never(), timeouts).await;
        }
        Upgrade::WebSocket { protocol, .. } => fixed(backend, to, io, protocol, timeouts).await,
    }
}

/// The headers of a stream, as far as they count.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Described {
    is_error: bool,
    port: u16,
    request: Option<String>,
}

fn described(headers: &Headers) -> Option<Described> {
    let is_error = match headers.get("streamtype")? {
        "error" => true,
        "data" => false,
        _ => return None,
    };
    let port = headers.get("port")?.parse().ok().filter(|port| *port > 0)?;
    let request = headers.get("requestid").filter(|id| id.len() <= 64);
    Some(Described {
        is_error,
        port,
        request: request.map(str::to_owned),
    })
}

/// Half of a pair.
#[derive(Debug)]
struct Half {
    port: u16,
    since: Instant,
    data: Option<(Incoming, Outgoing)>,
    error: Option<Outgoing>,
}

async fn pairs<B, S>(backend: &Arc<B>, to: PortForward, io: S, hang_up: HangUp, timeouts: Timeouts)
where
    B: Backend,
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let limits = Limits {
        streams: STREAMS,
        timeouts,
    };
    let admit = Box::new(|headers: &Headers| described(headers).is_some());
    let (connection, mut streams) = connection::serve(io, limits, hang_up, admit);
    let mut halves: HashMap<String, Half> = HashMap::new();
    let mut running = JoinSet::new();
    let gone = connection.gone();
    tokio::pin!(gone);
    let mut check = tokio::time::interval(timeouts.creation);
    loop {
        tokio::select! {
            stream = next(&mut streams) => {
                if let Some((port, data, error)) = matched(&mut halves, stream).await {
                    let (backend, pod) = (Arc::clone(backend), to.pod.clone());
                    running.spawn(async move { connect(&*backend, &pod, port, data, error).await });
                }
            }
            Some(_) = running.join_next() => {}
            _ = check.tick() => forget_late(&mut halves, timeouts).await,
            () = &mut gone => break,
        }
    }
    // What is still connected ends with the set.
}

async fn next(streams: &mut mpsc::Receiver<Stream>) -> Stream {
    match streams.recv().await {
        Some(stream) => stream,
        // The connection is over, which another branch sees.
        None => std::future::pending().await,
    }
}

type Pair = (u16, (Incoming, Outgoing), Outgoing);

/// Puts a stream to its other half; the pair, if it is whole now.
async fn matched(halves: &mut HashMap<String, Half>, stream: Stream) -> Option<Pair> {
    let described = described(&stream.headers)?;
    // Clients without request ids open the error stream first, and the data stream right after.
    let request = described.request.unwrap_or_else(|| {
        let number = stream.id - if described.is_error { 0 } else { 2 };
        format!("stream {number}")
    });
    let half = halves.entry(request.clone()).or_insert_with(|| Half {
        port: described.port,
        since: Instant::now(),
        data: None,
        error: None,
    });
    let taken = if described.is_error {
        half.error.is_some()
    } else {
        half.data.is_some()
    };
    if taken || half.port != described.port {
        stream.outgoing.abort(Reset::Protocol).await;
        return None;
    }
    if described.is_error {
        half.error = Some(stream.outgoing);
    } else {
        half.data = Some((stream.incoming, stream.outgoing));
    }
    if half.data.is_none() || half.error.is_none() {
        return None;
    }
    let half = halves.remove(&request)?;
    Some((half.port, half.data?, half.error?))
}

async fn forget_late(halves: &mut HashMap<String, Half>, timeouts: Timeouts) {
    let late: Vec<String> = halves
        .iter()
        .filter(|(_, half)| half.since.elapsed() >= timeouts.creation)
        .map(|(request, _)| request.clone())
        .collect();
    for request in late {
        if let Some(half) = halves.remove(&request) {
            for stream in half
                .data
                .map(|(_, data)| data)
                .into_iter()
                .chain(half.error)
            {
                stream.abort(Reset::Cancel).await;
            }
        }
    }
}

/// One connection, from the client's streams to the pod's port and back.
async fn connect<B: Backend>(
    backend: &B,
    pod: &str,
    port: u16,
    (incoming, data): (Incoming, Outgoing),
    error: Outgoing,
) {
    match backend.connect(pod, port).await {
        Ok(connection) => {
            if carry(connection, incoming, &data).await {
                data.finish().await;
            } else {
                data.abort(Reset::Cancel).await;
            }
        }
        Err(why) => {
            let text = format!("error forwarding port {port} to pod {pod}: {why}");
            let _gone = error.send(text.into()).await;
            data.finish().await;
        }
    }
    error.finish().await;
}

/// Both directions to their ends; false if either was broken off.
async fn carry(connection: UnixStream, mut incoming: Incoming, data: &Outgoing) -> bool {
    let (mut read, mut write) = connection.into_split();
    let inward = async {
        while let Some(bytes) = incoming.next().await {
            if write.write_all(&bytes).await.is_err() {
                // The pod's end takes no more; what it says is still carried.
                return true;
            }
        }
        if incoming.was_reset() {
            return false;
        }
        let _gone = write.shutdown().await;
        true
    };
    let outward = async {
        let mut bytes = BytesMut::new();
        loop {
            bytes.reserve(PIECE);
            match read.read_buf(&mut bytes).await {
                Ok(0) => break true,
                Ok(_) => {
                    if data.send(bytes.split().freeze()).await.is_err() {
                        break false;
                    }
                }
                Err(_) => break false,
            }
        }
    };
    tokio::pin!(inward, outward);
    tokio::select! {
        whole = &mut inward => whole && outward.await,
        whole = &mut outward => {
            // The pod has said all it will. The client learns of it at once, and closes its end.
            if whole {
                data.finish().await;
            }
            whole && inward.await
        }
    }
}

/// The older WebSocket protocol: one connection per port of the request, made at once.
async fn fixed<B, S>(
    backend: &Arc<B>,
    to: PortForward,
    io: S,
    protocol: &'static str,
    timeouts: Timeouts,
) where
    B: Backend,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    if to.ports.is_empty() {
        tracing::debug!("a WebSocket client forwards, but its request names no port");
        return;
    }
    let Some((connection, forwards)) = websocket::forwards(io, protocol, &to.ports, timeouts).await
    else {
        return;
    };
    let mut running = JoinSet::new();
    for one in forwards {
        let (backend, pod) = (Arc::clone(backend), to.pod.clone());
        running.spawn(async move {
            let Forwarded {
                port,
                incoming,
                data,
                error,
            } = one;
            connect(&*backend, &pod, port, (incoming, data), error).await;
        });
    }
    let gone = connection.gone();
    let all = async { while running.join_next().await.is_some() {} };
    let ended = tokio::select! {
        () = all => true,
        () = gone => false,
    };
    if ended {
        connection.finish().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        let pairs = pairs.iter();
        Headers(
            pairs
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        )
    }

    #[test]
    fn streams_say_what_they_are() {
        let good = headers(&[("streamtype", "data"), ("port", "80"), ("requestid", "3")]);
        let read = described(&good).unwrap();
        assert_eq!((read.is_error, read.port), (false, 80));
        for bad in [
            headers(&[("streamtype", "data")]),
            headers(&[("port", "80")]),
            headers(&[("streamtype", "stdin"), ("port", "80")]),
            headers(&[("streamtype", "error"), ("port", "0")]),
            headers(&[("streamtype", "error"), ("port", "65536")]),
            headers(&[("streamtype", "error"), ("port", "-1")]),
        ] {
            assert_eq!(described(&bad), None, "{bad:?}");
        }
    }
}
