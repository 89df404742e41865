//! Sessions: connections of their own for bulk bytes (`bulkhead_proto::session`). An exec whose
//! process lives as long as its connection, the input of a process that runs, a TCP connection
//! inside the pod. Nothing here shares a buffer with the service's HTTP/2 streams.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use bulkhead_proto::agent::session_request::{Forward, What};
use bulkhead_proto::agent::{ExecRequest, ProcessRef, SessionRequest, SessionResponse};
use bulkhead_proto::session::{self, FRAME_HEADER, Frame, MAX_FRAME, MAX_REQUEST};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::{Code, Status};

use super::container::exit;
use super::status;
use crate::container::{AnyProcess, Containers};
use crate::process::buffer::Read;

/// For the whole request to come: the daemon writes it in one go.
const REQUEST_DEADLINE: Duration = Duration::from_secs(30);
/// For a connection to the pod's own loopback address.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// How often an exec that is silent looks whether the daemon is still there.
const ALIVE_EVERY: Duration = Duration::from_secs(10);
const READ_SIZE: usize = 64 * 1024;

/// Serves a session whose first bytes (the magic) have been read.
pub async fn serve<S>(mut stream: S, containers: Arc<Containers>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let request = match timeout(REQUEST_DEADLINE, read_request(&mut stream)).await {
        Ok(Ok(request)) => request,
        Ok(Err(error)) => {
            return refuse(stream, &Status::invalid_argument(error.to_string())).await;
        }
        Err(_) => return,
    };
    let ended = match request.what {
        Some(What::Exec(request)) => exec(stream, containers, request).await,
        Some(What::Input(process)) => input(stream, &containers, process).await,
        Some(What::Forward(to)) => forward(stream, to).await,
        None => {
            let status = Status::invalid_argument("a session that asks for nothing");
            return refuse(stream, &status).await;
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a session ended");
    }
}

async fn read_request<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<SessionRequest> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let length = session::length(length, MAX_REQUEST).map_err(io::Error::other)?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    session::message(&body).map_err(io::Error::other)
}

async fn answer<S: AsyncWrite + Unpin>(stream: &mut S, status: &Status) -> io::Result<()> {
    let response = SessionResponse {
        code: i32::from(status.code()).unsigned_abs(),
        message: status.message().chars().take(4096).collect(),
    };
    stream.write_all(&session::answer(&response)).await?;
    stream.flush().await
}

async fn refuse<S: AsyncWrite + Unpin>(mut stream: S, status: &Status) {
    // A daemon that went away needs no answer.
    let _ = answer(&mut stream, status).await;
    let _ = stream.shutdown().await;
}

fn opened() -> Status {
    Status::new(Code::Ok, "")
}

async fn exec<S>(mut stream: S, containers: Arc<Containers>, request: ExecRequest) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (container, id) = (request.container_id.clone(), request.exec_id.clone());
    // Starting goes on to its end even if the daemon goes away, so that the process is known and
    // can be forgotten.
    let starting = {
        let containers = Arc::clone(&containers);
        tokio::spawn(async move { containers.run_exec(request).await })
    };
    let started = starting.await.map_err(io::Error::other)?;
    if let Err(error) = started {
        refuse(stream, &status::of_container(error)).await;
        return Ok(());
    }
    let forget = Forget {
        containers: Arc::clone(&containers),
        container,
        exec: id,
    };
    let process = match containers.process(&forget.container, &forget.exec) {
        Ok(process) => process,
        Err(error) => {
            refuse(stream, &status::of_container(error)).await;
            return Ok(());
        }
    };
    answer(&mut stream, &opened()).await?;
    let (read, mut write) = tokio::io::split(stream);
    let fed = async {
        feed(read, &process).await;
        // The process has its input; what it says still comes.
        std::future::pending::<()>().await;
    };
    let result = tokio::select! {
        result = tell(&process, &mut write) => result,
        () = fed => Ok(()),
    };
    drop(forget);
    result
}

/// Kills and forgets an exec when its session is over, however it ended.
struct Forget {
    containers: Arc<Containers>,
    container: String,
    exec: String,
}

impl Drop for Forget {
    fn drop(&mut self) {
        if let Err(error) = self.containers.delete_exec(&self.container, &self.exec) {
            tracing::warn!(%error, "an exec could not be ended");
        }
    }
}

/// Output to its end, then the exit.
async fn tell<S>(process: &AnyProcess, write: &mut WriteHalf<S>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite,
{
    let (mut stdout, mut stderr) = (Some(0u64), Some(0u64));
    let mut frame = Vec::with_capacity(FRAME_HEADER + MAX_FRAME);
    while stdout.is_some() || stderr.is_some() {
        let next = async {
            tokio::select! {
                read = process.stdout.wait_read(stdout.unwrap_or(0)), if stdout.is_some() => (true, read),
                read = process.stderr.wait_read(stderr.unwrap_or(0)), if stderr.is_some() => (false, read),
            }
        };
        let Ok((is_stdout, read)) = timeout(ALIVE_EVERY, next).await else {
            write.write_all(&Frame::Alive.header()).await?;
            continue;
        };
        let (offset, buffer) = if is_stdout {
            (&mut stdout, &process.stdout)
        } else {
            (&mut stderr, &process.stderr)
        };
        match read {
            Read::Data(piece) => {
                let end = piece.offset + piece.data.len() as u64;
                for part in parts(&piece.data) {
                    let header = if is_stdout {
                        Frame::Stdout(part.len())
                    } else {
                        Frame::Stderr(part.len())
                    };
                    // One write: the transport makes a packet of each.
                    frame.clear();
                    frame.extend_from_slice(&header.header());
                    frame.extend_from_slice(part);
                    write.write_all(&frame).await?;
                }
                *offset = Some(end);
                buffer.acknowledge(end);
            }
            Read::Finished => *offset = None,
            Read::Pending => {}
            Read::Forgotten { .. } | Read::Beyond { .. } => {
                return Err(io::Error::other("somebody else reads the exec's output"));
            }
        }
    }
    let end = process.exit.clone().wait().await;
    let end = end.ok_or_else(|| io::Error::other("the process was given up without an exit"))?;
    write.write_all(&session::exit(&exit(&end))).await?;
    write.shutdown().await
}

fn parts(data: &Bytes) -> impl Iterator<Item = &[u8]> {
    data.chunks(MAX_FRAME)
}

/// The session's bytes into the process's input, until either ends; then what still comes is
/// dropped, so that the daemon does not wait for ever.
async fn feed<S: AsyncRead + AsyncWrite>(mut read: ReadHalf<S>, process: &AnyProcess) {
    let mut bytes = BytesMut::with_capacity(READ_SIZE);
    let mut exit = process.exit.clone();
    let mut taking = true;
    loop {
        bytes.clear();
        match read.read_buf(&mut bytes).await {
            Ok(n) if n > 0 => {}
            _ => break,
        }
        if !taking {
            continue;
        }
        // One message at a time, so that two clients at one terminal can both type.
        let mut stdin = process.stdin.lock().await;
        let taken = match stdin.as_ref() {
            Some(input) => input.write(&bytes, &mut exit).await,
            None => 0,
        };
        if taken < bytes.len() {
            taking = false;
            if !process.has_terminal() {
                *stdin = None;
            }
        }
    }
    let once = match process {
        AnyProcess::Exec(_) => true,
        AnyProcess::First(container) => container.stdin_once,
    };
    // A terminal has no half-close.
    if once && !process.has_terminal() {
        *process.stdin.lock().await = None;
    }
}

async fn input<S>(mut stream: S, containers: &Containers, process: ProcessRef) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let process = match containers.process(&process.container_id, &process.exec_id) {
        Ok(process) => process,
        Err(error) => {
            refuse(stream, &status::of_container(error)).await;
            return Ok(());
        }
    };
    if process.stdin.lock().await.is_none() {
        let status = Status::failed_precondition(
            "the process has no standard input: it was started without, or it was closed",
        );
        refuse(stream, &status).await;
        return Ok(());
    }
    answer(&mut stream, &opened()).await?;
    let (read, mut write) = tokio::io::split(stream);
    let mut exit = process.exit.clone();
    tokio::select! {
        () = feed(read, &process) => {}
        () = exit.wait_raw() => {}
    }
    write.shutdown().await
}

async fn forward<S>(mut stream: S, to: Forward) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut target = match connect(to.port).await {
        Ok(target) => target,
        Err(status) => {
            refuse(stream, &status).await;
            return Ok(());
        }
    };
    answer(&mut stream, &opened()).await?;
    tokio::io::copy_bidirectional_with_sizes(&mut stream, &mut target, READ_SIZE, READ_SIZE)
        .await
        .map(drop)
}

async fn connect(port: u32) -> Result<TcpStream, Status> {
    let port = u16::try_from(port)
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| Status::invalid_argument(format!("{port} is no TCP port (1 to 65535)")))?;
    let mut last = io::Error::from(io::ErrorKind::TimedOut);
    for address in [
        IpAddr::from(Ipv4Addr::LOCALHOST),
        IpAddr::from(Ipv6Addr::LOCALHOST),
    ] {
        match timeout(CONNECT_DEADLINE, TcpStream::connect((address, port))).await {
            Ok(Ok(stream)) => {
                // Small messages of a protocol must not wait for each other.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            // The first address's answer tells more: a pod without IPv6 has none at all.
            Ok(Err(error)) if address.is_ipv4() => last = error,
            Ok(Err(_)) | Err(_) => {}
        }
    }
    let text = format!(
        "nothing accepts connections on port {port} of the pod's loopback address, by IPv4 or \
         IPv6: {last}"
    );
    Err(Status::failed_precondition(text))
}
