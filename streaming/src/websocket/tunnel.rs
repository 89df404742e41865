//! SPDY inside a WebSocket (`SPDY/3.1+portforward.k8s.io`): the bytes of a connection in binary
//! messages, cut anywhere.

use bytes::BytesMut;
use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};

use super::connection::config;

const BUFFER: usize = 64 * 1024;

/// The connection inside; what carries it ends with it.
pub(crate) async fn tunnel<S>(io: S) -> DuplexStream
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config())).await;
    let (outer, inner) = tokio::io::duplex(BUFFER);
    tokio::spawn(carry(socket, outer));
    inner
}

async fn carry<S>(socket: WebSocketStream<S>, outer: DuplexStream)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (mut sink, mut source) = socket.split();
    let (mut read, mut write) = tokio::io::split(outer);
    let inward = async {
        while let Some(Ok(message)) = source.next().await {
            match message {
                Message::Binary(bytes) => {
                    let written = write.write_all(&bytes).await;
                    if written.is_err() {
                        return;
                    }
                }
                Message::Text(_) | Message::Close(_) => break,
                _ => {}
            }
        }
        // The end of what the client says, told to the connection inside.
        let _gone = write.shutdown().await;
    };
    let outward = async {
        let mut bytes = BytesMut::new();
        loop {
            bytes.reserve(BUFFER);
            match read.read_buf(&mut bytes).await {
                Ok(n) if n > 0 => {
                    let message = Message::Binary(bytes.split().freeze());
                    if sink.send(message).await.is_err() {
                        return;
                    }
                }
                _ => break,
            }
        }
        let _gone = sink.send(Message::Close(None)).await;
    };
    // The inner connection is dropped when its session is over, which ends `outward`.
    tokio::join!(
        async {
            inward.await;
        },
        outward
    );
}
