//! The channel to an agent: a Unix socket of the VMM, the textual handshake `CONNECT port` / `OK
//! port`, then HTTP/2.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use bulkhead_proto::{
    agent::{
        AGENT_PORT, SessionRequest, SessionResponse, agent_client::AgentClient,
        session_request::What,
    },
    session,
};
use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint, Uri},
};

use super::AgentError;

/// The generated client over our channel; cheap to clone, and each call needs its own clone.
pub type Client = AgentClient<Channel>;

/// The HTTP/2 handshake and one round trip in the slowest guest that still counts as alive.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// A session's opening: starting a command in a guest that is busy.
const SESSION_DEADLINE: Duration = Duration::from_secs(60);
/// What the agent may have sent of one call's stream before it is read.
const STREAM_WINDOW: u32 = 1 << 20;
/// The sum over all streams of a connection is bounded by their own windows. A bound on the
/// connection would let a few streams that are not being read stop every other call.
const CONNECTION_WINDOW: u32 = 1 << 30;
/// A connection without an answer for this long is given up, and the next call makes a new one.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(20);
const KEEPALIVE_DEADLINE: Duration = Duration::from_secs(20);
/// The VMM's answer is `OK ` and at most ten digits.
const LONGEST_ANSWER: usize = 16;
/// Above the largest message of either side: an OCI spec, a chunk of output.
pub const MAX_MESSAGE: usize = 16 << 20;

/// The largest answer or event of an agent: the figures of a few thousand containers. A guest that says
/// more is not believed; each byte of it may take a hundred of memory.
const MAX_ANSWER: usize = 512 << 10;

/// A pod's agent.
#[derive(Debug, Clone)]
pub struct Agent {
    channel: Channel,
    address: Address,
}

impl Agent {
    /// A client for one call.
    pub fn client(&self) -> Client {
        AgentClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_ANSWER)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    /// Opens a session: a connection of its own, for bytes (`bulkhead_proto::session`).
    pub async fn session(
        &self,
        action: &'static str,
        what: What,
    ) -> Result<UnixStream, AgentError> {
        match tokio::time::timeout(SESSION_DEADLINE, self.open(action, what)).await {
            Ok(opened) => opened,
            Err(_) => Err(AgentError::Deadline {
                action,
                seconds: SESSION_DEADLINE.as_secs(),
            }),
        }
    }

    async fn open(&self, action: &'static str, what: What) -> Result<UnixStream, AgentError> {
        let failed = |source| AgentError::Session { action, source };
        let opening = session::opening(&SessionRequest { what: Some(what) });
        let mut stream = self.address.dial().await.map_err(failed)?;
        stream.write_all(&opening).await.map_err(failed)?;
        let mut length = [0; 4];
        stream.read_exact(&mut length).await.map_err(failed)?;
        let length = session::length(length, session::MAX_RESPONSE);
        let length = length.map_err(|error| failed(io::Error::other(error)))?;
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.map_err(failed)?;
        let response: SessionResponse =
            session::message(&body).map_err(|error| failed(io::Error::other(error)))?;
        match Code::from(i32::try_from(response.code).unwrap_or(i32::MAX)) {
            Code::Ok => Ok(stream),
            code => Err(AgentError::Call {
                action,
                status: Box::new(Status::new(code, response.message)),
            }),
        }
    }

    /// One unary call with a deadline: `agent.call("start the container", secs, |mut c| async
    /// move { c.start_container(request).await })`.
    pub async fn call<T, F, R>(
        &self,
        action: &'static str,
        deadline: Duration,
        call: F,
    ) -> Result<T, AgentError>
    where
        F: FnOnce(Client) -> R,
        R: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        match tokio::time::timeout(deadline, call(self.client())).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(AgentError::Call {
                action,
                status: Box::new(status),
            }),
            Err(_) => Err(AgentError::Deadline {
                action,
                seconds: deadline.as_secs(),
            }),
        }
    }
}

/// Where an agent serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// In a guest: the VMM's socket for its vsock device.
    Vsock(PathBuf),
    /// On the host: its own socket.
    Unix(PathBuf),
}

impl Address {
    fn path(&self) -> &Path {
        match self {
            Self::Vsock(path) | Self::Unix(path) => path,
        }
    }

    async fn dial(&self) -> io::Result<UnixStream> {
        match self {
            Self::Vsock(path) => dial(path, AGENT_PORT).await,
            // A Unix socket answers at once or not at all.
            Self::Unix(path) => crate::machine::vm::jail::connect(path).await,
        }
    }
}

/// Connects to an agent. Reconnects by itself later on.
pub async fn connect(address: &Address) -> Result<Agent, AgentError> {
    let connector = tower::service_fn(connector(address));
    let channel = endpoint()
        .connect_with_connector(connector)
        .await
        .map_err(|source| AgentError::Connect {
            path: address.path().to_owned(),
            source,
        })?;
    Ok(Agent {
        channel,
        address: address.clone(),
    })
}

/// Like [`connect`], but the connection is made by the first call: for a pod of an earlier daemon,
/// which is there whether or not its guest has time to answer just now.
pub fn connect_lazily(address: &Address) -> Agent {
    let connector = tower::service_fn(connector(address));
    Agent {
        channel: endpoint().connect_with_connector_lazy(connector),
        address: address.clone(),
    }
}

fn endpoint() -> Endpoint {
    // The name is never looked up: the connector decides where to.
    Endpoint::from_static("http://agent.invalid")
        .connect_timeout(CONNECT_DEADLINE)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(KEEPALIVE_EVERY)
        .keep_alive_timeout(KEEPALIVE_DEADLINE)
}

type Dialled = BoxFuture<'static, io::Result<TokioIo<UnixStream>>>;

fn connector(address: &Address) -> impl FnMut(Uri) -> Dialled + Clone + Send + 'static {
    let address = address.clone();
    move |_| {
        let address = address.clone();
        Box::pin(async move { address.dial().await.map(TokioIo::new) })
    }
}

/// Opens a stream to a guest's vsock port through the VMM's socket, in bounded time.
pub async fn dial(vsock: &Path, port: u32) -> io::Result<UnixStream> {
    tokio::time::timeout(CONNECT_DEADLINE, handshake(vsock, port))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the VMM did not answer CONNECT"))?
}

async fn handshake(vsock: &Path, port: u32) -> io::Result<UnixStream> {
    let mut stream = crate::machine::vm::jail::connect(vsock).await?;
    stream
        .write_all(format!("CONNECT {port}\n").as_bytes())
        .await?;
    // Byte by byte: what follows the line is the guest's already.
    let mut line = Vec::new();
    loop {
        let byte = stream.read_u8().await?;
        if byte == b'\n' {
            break;
        }
        line.push(byte);
        if line.len() > LONGEST_ANSWER {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the VMM's answer is too long",
            ));
        }
    }
    match line.strip_prefix(b"OK ") {
        Some(port) if !port.is_empty() && port.iter().all(u8::is_ascii_digit) => Ok(stream),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the VMM did not answer OK",
        )),
    }
}

#[cfg(test)]
mod tests {
    use bulkhead_proto::agent::ProcessRef;
    use tokio::net::UnixListener;

    use super::*;

    /// Hears what is asked in full, says its answer, which may not be read to the end, and no more.
    async fn answer_one(listener: &UnixListener, asked: usize, answer: &[u8]) -> UnixStream {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut question = vec![0; asked];
        stream.read_exact(&mut question).await.unwrap();
        let _ = stream.write_all(answer).await;
        let _ = stream.shutdown().await;
        stream
    }

    /// A guest that was taken over: what it says to whoever opens a session, and then it ends.
    async fn opened(answer: &[u8]) -> Result<UnixStream, AgentError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let agent = connect_lazily(&Address::Unix(path));
        let what = What::Input(ProcessRef::default());
        let asked = session::opening(&SessionRequest {
            what: Some(what.clone()),
        });
        let answering = answer_one(&listener, asked.len(), answer);
        let (opened, _stream) = tokio::join!(agent.session("test", what), answering);
        opened
    }

    #[tokio::test]
    async fn a_sessions_answer_is_bounded_and_whole() {
        let good = session::answer(&SessionResponse::default());
        assert!(opened(&good).await.is_ok());
        let too_long = u32::try_from(session::MAX_RESPONSE + 1).unwrap();
        for bad in [
            u32::MAX.to_be_bytes().as_slice(),
            &too_long.to_be_bytes(),
            &[0, 0, 0],
            &[0, 0, 0, 9, 1],
            &[0, 0, 0, 2, 0xff, 0xff],
        ] {
            let refused = opened(bad).await;
            assert!(
                matches!(refused, Err(AgentError::Session { .. })),
                "{bad:?}: {refused:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_handshake_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock");
        let listener = UnixListener::bind(&path).unwrap();
        for (answer, good) in [
            ("OK 1073741824\n".to_owned(), true),
            ("OK \n".to_owned(), false),
            ("OK 12x\n".to_owned(), false),
            ("NO\n".to_owned(), false),
            (format!("OK {}\n", "1".repeat(64)), false),
            ("O".repeat(1 << 10), false),
        ] {
            let answering = answer_one(&listener, "CONNECT 1024\n".len(), answer.as_bytes());
            let (dialled, _stream) = tokio::join!(dial(&path, 1024), answering);
            assert_eq!(dialled.is_ok(), good, "{answer:.40}");
        }
    }
}
