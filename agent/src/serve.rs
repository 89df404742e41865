//! Serving the agent's service and its sessions on vsock or a Unix socket, and reporting to the
//! host that it is ready.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bulkhead_proto::agent::agent_server::AgentServer;
use bulkhead_proto::agent::{READY_PORT, Ready};
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use prost::Message;
use rustix::fs::Mode;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::UnixListener;
use tokio::time::timeout;
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};

use crate::clock;
use crate::gate::{Gate, Peer, Place};
use crate::rpc::{Agent, session};
use bulkhead_proto::session::MAGIC;

/// The largest message the service takes: an OCI spec with a large environment.
const MAX_MESSAGE: usize = 16 << 20;
/// Large windows: one stream of output must not wait for a round trip per 64 KiB.
const WINDOW: u32 = 1 << 20;
/// Either end of a connection speaks first and at once; a slow guest gets a long time.
const FIRST_BYTES: Duration = Duration::from_secs(60);

/// Why the service is not there.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// vsock.
    #[error("listening on vsock port {port} (does the guest have a virtio-vsock device?)")]
    Vsock {
        /// Which port.
        port: u32,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// Unix.
    #[error("listening on {}", path.display())]
    Unix {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// Ready.
    #[error("reporting to the host on vsock port {READY_PORT} that the agent is ready")]
    Ready(#[source] io::Error),
}

/// Where connections come from.
#[derive(Debug)]
pub enum Listener {
    /// From the host of a guest.
    Vsock(VsockListener),
    /// From this machine.
    Unix(UnixListener),
}

impl Listener {
    /// Listens on a vsock port.
    ///
    /// # Errors
    /// Without a vsock device.
    pub fn vsock(port: u32) -> Result<Self, ServeError> {
        VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port))
            .map(Self::Vsock)
            .map_err(|error| ServeError::Vsock { port, error })
    }

    /// Listens on a Unix socket, in place of one that is left over.
    ///
    /// # Errors
    /// If the path cannot be bound.
    pub fn unix(path: &Path) -> Result<Self, ServeError> {
        let _ = std::fs::remove_file(path);
        // Who connects is root to the pod, and on a host to the host.
        let mask = rustix::process::umask(Mode::RWXG | Mode::RWXO);
        let listener = UnixListener::bind(path);
        rustix::process::umask(mask);
        listener.map(Self::Unix).map_err(|error| ServeError::Unix {
            path: path.to_owned(),
            error,
        })
    }

    /// Serves until the agent ends. A failed connection affects no other.
    pub async fn serve(self, agent: Agent) {
        let gate = Gate::default();
        loop {
            match &self {
                Self::Vsock(listener) => match listener.accept().await {
                    Ok((stream, from)) => {
                        if let Some(place) = gate.admit(Peer::Context(from.cid())) {
                            spawn_connection(stream, place, &agent);
                        }
                    }
                    Err(error) => pause(&error).await,
                },
                Self::Unix(listener) => match listener.accept().await {
                    Ok((stream, _)) => {
                        if let Some(place) = gate.admit(Peer::Local) {
                            spawn_connection(stream, place, &agent);
                        }
                    }
                    Err(error) => pause(&error).await,
                },
            }
        }
    }
}

/// After a failed accept (out of descriptors): backs off, so that others can free some.
async fn pause(error: &io::Error) {
    tracing::warn!(%error, "a connection could not be accepted");
    clock::back_off(Duration::from_millis(100)).await;
}

fn spawn_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    mut place: Place,
    agent: &Agent,
) {
    let service = AgentServer::new(agent.clone())
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let agent = Arc::clone(agent.containers());
    tokio::spawn(async move {
        let mut stream = stream;
        let mut first = [0; MAGIC.len()];
        let began = timeout(FIRST_BYTES, stream.read_exact(&mut first)).await;
        if !matches!(began, Ok(Ok(_))) {
            return;
        }
        place.spoke();
        if first == MAGIC {
            return session::serve(stream, agent).await;
        }
        let stream = Replayed {
            first: first.to_vec(),
            stream,
        };
        let connection = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(4 * WINDOW)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection ended");
        }
        drop(place);
    });
}

/// A connection of which the beginning was read to see what it is: read again first.
struct Replayed<S> {
    first: Vec<u8>,
    stream: S,
}

impl<S: AsyncRead + Unpin> AsyncRead for Replayed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let n = self.first.len().min(buffer.remaining());
        buffer.put_slice(self.first.get(..n).unwrap_or_default());
        self.first.drain(..n);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Replayed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Dials the host and says that the agent serves.
///
/// # Errors
/// If the host does not listen.
pub async fn report_ready(ready: &Ready) -> Result<(), ServeError> {
    let attempt = async {
        let mut stream = VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, READY_PORT)).await?;
        stream
            .write_all(&ready.encode_length_delimited_to_vec())
            .await?;
        AsyncWriteExt::shutdown(&mut stream).await
    };
    attempt.await.map_err(ServeError::Ready)
}
