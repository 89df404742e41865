//! A further process in a container, for as long as its session.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_proto::agent::{ExecRequest, Stream};
use bulkhead_proto::session::{self, FRAME_HEADER, Frame, MAX_FRAME};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, WriteHalf};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::input::feed;
use super::reply::{answer, opened, refuse};
use crate::clock;
use crate::container::Containers;
use crate::process::Process;
use crate::process::pump::Output;
use crate::report::Report;
use crate::rpc::container::exit;
use crate::rpc::status;

/// How often an exec that is silent looks whether the daemon is still there.
const ALIVE_EVERY: Duration = Duration::from_secs(10);
/// The same once the daemon has ended its side: of the input, or of everything.
const ALIVE_EVERY_SHUT: Duration = Duration::from_secs(1);

/// Runs it. The connection's end is its end.
pub async fn serve<S>(
    mut stream: S,
    containers: Arc<Containers>,
    request: ExecRequest,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (container, exec) = (request.container_id.clone(), request.exec_id.clone());
    // Starting completes even if the daemon disconnects, so that the process is known and can be
    // deleted.
    let starting = {
        let containers = Arc::clone(&containers);
        tokio::spawn(async move { containers.run_exec(request).await })
    };
    let running = match starting.await.map_err(io::Error::other)? {
        Ok(running) => running,
        Err(error) => {
            refuse(stream, &status::of_container(error)).await;
            return Ok(());
        }
    };
    let deleted = DeleteOnDrop {
        containers,
        container,
        exec,
    };
    answer(&mut stream, &opened()).await?;
    let (read, mut write) = tokio::io::split(stream);
    let (process, shut) = (&running.process, Notify::new());
    let fed = async {
        feed(read, process, true).await;
        shut.notify_one();
        // The process has its input; what it says still comes.
        std::future::pending::<()>().await;
    };
    let result = tokio::select! {
        result = send_output(process, &mut write, &shut) => result,
        () = fed => Ok(()),
    };
    drop(deleted);
    result
}

/// Forgets an exec when its session is over, however that ended; one that still runs is killed with
/// all that it started.
struct DeleteOnDrop {
    containers: Arc<Containers>,
    container: String,
    exec: String,
}

impl Drop for DeleteOnDrop {
    fn drop(&mut self) {
        if let Err(error) = self.containers.delete_exec(&self.container, &self.exec) {
            tracing::warn!(error = %Report(&error), "an exec could not be killed");
        }
    }
}

/// Output to its end, then the exit. Read from the process's own pipes into the frame that is sent:
/// a slow reader leaves the output in the pipe, which blocks the process.
async fn send_output<S>(
    process: &Process,
    write: &mut WriteHalf<S>,
    shut: &Notify,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite,
{
    let (stdout, stderr) = process.take_output();
    let (mut stdout, mut stderr) = (Source::new(stdout), Source::new(stderr));
    // With its header a frame fills the transport's packets, and does not spill into one more.
    let mut frame = Vec::with_capacity(MAX_FRAME);
    let mut alive_every = ALIVE_EVERY;
    while !(stdout.has_ended() && stderr.has_ended()) {
        let next = async {
            tokio::select! {
                () = stdout.ready(), if !stdout.has_ended() => Some(true),
                () = stderr.ready(), if !stderr.has_ended() => Some(false),
                () = shut.notified() => None,
            }
        };
        let next = timeout(alive_every, next).await;
        let Ok(Some(is_stdout)) = next else {
            if next.is_ok() {
                alive_every = ALIVE_EVERY_SHUT;
            }
            write.write_all(&Frame::Alive.header()).await?;
            continue;
        };
        let (source, stream) = if is_stdout {
            (&mut stdout, Stream::Stdout)
        } else {
            (&mut stderr, Stream::Stderr)
        };
        if source.fill(stream, &mut frame) {
            write.write_all(&frame).await?;
        }
    }
    // It may have closed its output and live on.
    let mut exit_watch = process.exit.clone();
    let end = loop {
        let end = async {
            tokio::select! {
                end = exit_watch.wait() => Some(end),
                () = shut.notified() => None,
            }
        };
        let end = timeout(alive_every, end).await;
        if let Ok(Some(end)) = end {
            break end;
        }
        if end.is_ok() {
            alive_every = ALIVE_EVERY_SHUT;
        }
        write.write_all(&Frame::Alive.header()).await?;
    };
    let end = end.ok_or_else(|| io::Error::other("the agent lost track of the process"))?;
    write.write_all(&session::exit(&exit(&end))).await?;
    write.shutdown().await
}

/// An output stream, and how much of it was sent.
struct Source {
    output: Option<Output>,
    sent: u64,
}

impl Source {
    fn new(output: Option<Output>) -> Self {
        Self { output, sent: 0 }
    }

    fn has_ended(&self) -> bool {
        self.output.as_ref().is_none_or(Output::has_ended)
    }

    async fn ready(&mut self) {
        if let Some(output) = &mut self.output {
            output.ready().await;
        }
    }

    /// Makes a frame of what is there; false if it is nothing.
    fn fill(&mut self, stream: Stream, frame: &mut Vec<u8>) -> bool {
        frame.clear();
        frame.extend_from_slice(&[0; FRAME_HEADER]);
        if let Some(output) = &mut self.output {
            output.read(frame);
        }
        let Some((header, data)) = frame.split_first_chunk_mut() else {
            return false;
        };
        let output = session::Output {
            stream,
            length: data.len(),
            offset: self.sent,
            time_unix_ns: clock::realtime_ns(),
        };
        *header = Frame::Output(output).header();
        self.sent += data.len() as u64;
        !data.is_empty()
    }
}
