//! Calls that stream: output with acknowledgements, input, events.

use std::pin::Pin;
use std::sync::Arc;

use bulkhead_proto::agent::{
    self, InputRequest, OutputChunk, OutputRequest, ProcessRef, output_chunk, output_chunk::Data,
};
use futures::{Stream, StreamExt, stream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::container::exit;
use super::status;
use crate::container::events::What;
use crate::container::{AnyProcess, Containers};
use crate::process::buffer::{Read, StreamBuffer};

type Chunks = Pin<Box<dyn Stream<Item = Result<OutputChunk, Status>> + Send>>;

/// How many pieces are on their way to the daemon; the rest waits in the buffer.
const IN_FLIGHT: usize = 4;

fn find(containers: &Containers, process: Option<ProcessRef>) -> Result<AnyProcess, Status> {
    let process = process.ok_or_else(|| {
        Status::invalid_argument("the first message of a stream must name the process")
    })?;
    containers
        .process(&process.container_id, &process.exec_id)
        .map_err(status::of_container)
}

/// A process's output from given offsets on, both streams as they come, and at their ends the exit.
///
/// # Errors
/// For an unknown process, or offsets the agent cannot serve.
pub async fn output(
    containers: &Containers,
    mut requests: Streaming<OutputRequest>,
) -> Result<Chunks, Status> {
    let first = requests
        .message()
        .await?
        .ok_or_else(|| Status::invalid_argument("an output stream needs a first message"))?;
    let process = find(containers, first.process)?;
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    for (buffer, offset) in [
        (&process.stdout, first.stdout_offset),
        (&process.stderr, first.stderr_offset),
    ] {
        check_offset(buffer, offset)?;
    }

    // Acknowledgements are taken for as long as the daemon keeps its side open, also while the
    // other direction is blocked.
    let acknowledged = process.clone();
    tokio::spawn(async move {
        while let Ok(Some(request)) = requests.message().await {
            acknowledged.stdout.acknowledge(request.stdout_offset);
            acknowledged.stderr.acknowledge(request.stderr_offset);
        }
    });
    tokio::spawn(async move {
        let stdout = send_stream(
            &process.stdout,
            agent::Stream::Stdout,
            first.stdout_offset,
            &sender,
        );
        let stderr = send_stream(
            &process.stderr,
            agent::Stream::Stderr,
            first.stderr_offset,
            &sender,
        );
        let (stdout, stderr) = tokio::join!(stdout, stderr);
        if !(stdout && stderr) {
            return;
        }
        let mut end = process.exit.clone();
        let last = match end.wait().await {
            Some(end) => Ok(OutputChunk {
                event: Some(output_chunk::Event::Exit(exit(&end))),
            }),
            None => Err(Status::aborted("the process was given up without an exit")),
        };
        // A daemon that went away asks again.
        let _ = sender.send(last).await;
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

fn check_offset(buffer: &StreamBuffer, offset: u64) -> Result<(), Status> {
    match buffer.read(offset) {
        Read::Forgotten { kept_from } => Err(Status::new(
            Code::OutOfRange,
            format!(
                "output before offset {kept_from} was acknowledged and is forgotten; asked for {offset}"
            ),
        )),
        Read::Beyond { end } => Err(Status::new(
            Code::OutOfRange,
            format!("the stream has {end} bytes so far; asked for offset {offset}"),
        )),
        _ => Ok(()),
    }
}

/// True when the stream was sent to its end.
async fn send_stream(
    buffer: &StreamBuffer,
    stream: agent::Stream,
    mut offset: u64,
    sender: &mpsc::Sender<Result<OutputChunk, Status>>,
) -> bool {
    loop {
        let read = tokio::select! {
            read = buffer.wait_read(offset) => read,
            () = sender.closed() => return false,
        };
        let chunk = match read {
            Read::Data(piece) => {
                let data = Data {
                    stream: stream.into(),
                    offset,
                    data: piece.data,
                    time_unix_ns: piece.time_unix_ns,
                };
                offset += data.data.len() as u64;
                Ok(OutputChunk {
                    event: Some(output_chunk::Event::Data(data)),
                })
            }
            Read::Finished => return true,
            // Another reader acknowledged what this one has not read.
            Read::Forgotten { kept_from } => Err(Status::new(
                Code::OutOfRange,
                format!("output before offset {kept_from} was acknowledged by another reader"),
            )),
            Read::Beyond { .. } | Read::Pending => continue,
        };
        let failed = chunk.is_err();
        if sender.send(chunk).await.is_err() || failed {
            return false;
        }
    }
}

/// A process's input. Returns how much the process's end took.
///
/// # Errors
/// For an unknown process, one without input, or a broken stream.
pub async fn input(
    containers: &Containers,
    mut requests: Streaming<InputRequest>,
) -> Result<u64, Status> {
    let mut next = requests.message().await?;
    let Some(first) = &mut next else {
        return Err(Status::invalid_argument(
            "an input stream needs a first message",
        ));
    };
    let process = find(containers, first.process.take())?;
    // One writer at a time; held to the end, so that two streams do not mix.
    let mut stdin = process.stdin.lock().await;
    let Some(input) = stdin.as_ref() else {
        return Err(Status::failed_precondition(
            "the process has no standard input: it was started without, or it was closed",
        ));
    };
    let mut exit = process.exit.clone();
    let (mut written, mut close) = (0u64, false);
    let mut broken = None;
    while let Some(request) = next.take() {
        let length = request.data.len();
        let taken = input.write(&request.data, &mut exit).await;
        written += taken as u64;
        close = request.close || taken < length;
        if close {
            break;
        }
        let received = tokio::select! {
            received = requests.message() => received,
            () = exit.wait_raw() => break,
        };
        match received {
            Ok(request) => next = request,
            Err(status) => broken = Some(status),
        }
    }
    let once = matches!(&process, AnyProcess::First(container) if container.stdin_once);
    // A terminal has no half-close: its process is told by what it reads, and others may still
    // write.
    if (close || once) && !process.has_terminal() {
        *stdin = None;
    }
    match broken {
        Some(status) => Err(status),
        None => Ok(written),
    }
}

/// Events from a sequence number on, for as long as the daemon listens.
pub fn events(
    containers: Arc<Containers>,
    from: u64,
) -> Pin<Box<dyn Stream<Item = Result<agent::Event, Status>> + Send>> {
    let events = stream::unfold((containers, from), |(containers, from)| async move {
        let event = containers.events.next(from).await;
        Some((event.clone(), (containers, event.sequence + 1)))
    });
    Box::pin(events.map(|event| {
        let what = match event.what {
            What::Exited(end) => agent::event::What::Exited(exit(&end)),
            What::Oom { time_unix_ns } => agent::event::What::Oom(agent::Oom { time_unix_ns }),
        };
        Ok(agent::Event {
            sequence: event.sequence,
            container_id: event.container,
            what: Some(what),
        })
    }))
}
