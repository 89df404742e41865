//! The output of a container's own process, which is kept until it is acknowledged: the next
//! session continues where the last was cut off.

use std::io;

use bulkhead_proto::agent::{OutputRequest, Stream};
use bulkhead_proto::session::{self, ACKNOWLEDGEMENT, FRAME_HEADER, Frame, MAX_FRAME};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tonic::Status;

use super::reply::{answer, opened, refuse};
use crate::container::Containers;
use crate::process::Process;
use crate::process::buffer::{Piece, Read, StreamBuffer};
use crate::rpc::container::exit;
use crate::rpc::status;

/// From here on a write is large enough: each costs the guest an exit and the host a switch.
const WRITE_SIZE: usize = 192 * 1024;

/// Sends output from the offsets asked for, both streams as they come, and at their ends the exit.
pub async fn serve<S>(stream: S, containers: &Containers, request: OutputRequest) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut stream = stream;
    let container = request.process.clone().unwrap_or_default().container_id;
    let container = match containers.get(&container) {
        Ok(container) => container,
        Err(error) => {
            refuse(stream, &status::of_container(error)).await;
            return Ok(());
        }
    };
    let process = &container.process;
    if let Err(status) = check(process, &request) {
        refuse(stream, &status).await;
        return Ok(());
    }
    answer(&mut stream, &opened()).await?;
    let (read, write) = tokio::io::split(stream);
    tokio::select! {
        sent = send_output(process, &request, write) => sent,
        gone = acknowledge(read, process) => gone,
    }
}

fn check(process: &Process, request: &OutputRequest) -> Result<(), Status> {
    let exec = request
        .process
        .iter()
        .any(|process| !process.exec_id.is_empty());
    if exec {
        return Err(Status::invalid_argument(
            "the output of an exec goes to the session that started it, and to no other",
        ));
    }
    check_offset(&process.stdout, request.stdout_offset)?;
    check_offset(&process.stderr, request.stderr_offset)
}

fn check_offset(buffer: &StreamBuffer, offset: u64) -> Result<(), Status> {
    let text = match buffer.read(offset) {
        Read::Forgotten { kept_from } => format!(
            "output before offset {kept_from} was acknowledged and is forgotten; asked for {offset}"
        ),
        Read::Beyond { end } => {
            format!("the stream has {end} bytes so far; asked for offset {offset}")
        }
        Read::Data(_) | Read::Pending | Read::Finished => return Ok(()),
    };
    Err(Status::out_of_range(text))
}

/// Takes acknowledgements until the reader goes away.
async fn acknowledge<S>(mut read: ReadHalf<S>, process: &Process) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite,
{
    let mut word = [0; ACKNOWLEDGEMENT];
    loop {
        read.read_exact(&mut word).await?;
        let (stdout, stderr) = session::acknowledged(word);
        process.stdout.acknowledge(stdout);
        process.stderr.acknowledge(stderr);
    }
}

async fn send_output<S>(
    process: &Process,
    request: &OutputRequest,
    mut write: WriteHalf<S>,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite,
{
    let (mut stdout, mut stderr) = (Some(request.stdout_offset), Some(request.stderr_offset));
    let mut frames = Vec::new();
    while stdout.is_some() || stderr.is_some() {
        let (stream, read) = tokio::select! {
            read = process.stdout.wait_read(stdout.unwrap_or(0)), if stdout.is_some() =>
                (Stream::Stdout, read),
            read = process.stderr.wait_read(stderr.unwrap_or(0)), if stderr.is_some() =>
                (Stream::Stderr, read),
        };
        let (next, buffer) = match stream {
            Stream::Stdout => (&mut stdout, &process.stdout),
            Stream::Stderr => (&mut stderr, &process.stderr),
        };
        match read {
            Read::Data(piece) => {
                frames.clear();
                let mut end = append(&mut frames, stream, &piece);
                // Whatever else is there already goes into the same write.
                while frames.len() < WRITE_SIZE
                    && let Read::Data(piece) = buffer.read(end)
                {
                    end = append(&mut frames, stream, &piece);
                }
                write.write_all(&frames).await?;
                *next = Some(end);
            }
            Read::Finished => *next = None,
            Read::Pending => {}
            Read::Forgotten { .. } | Read::Beyond { .. } => {
                return Err(io::Error::other(
                    "another reader acknowledged what this one has not read",
                ));
            }
        }
    }
    let end = process.exit.clone().wait().await;
    let end = end.ok_or_else(|| io::Error::other("the agent lost track of the process"))?;
    write.write_all(&session::exit(&exit(&end))).await?;
    write.shutdown().await
}

/// Puts a piece into frames; the offset behind it.
fn append(frames: &mut Vec<u8>, stream: Stream, piece: &Piece) -> u64 {
    let mut offset = piece.offset;
    for part in piece.data.chunks(MAX_FRAME) {
        let output = session::Output {
            stream,
            length: part.len(),
            offset,
            time_unix_ns: piece.time_unix_ns,
        };
        frames.reserve(FRAME_HEADER + part.len());
        frames.extend_from_slice(&Frame::Output(output).header());
        frames.extend_from_slice(part);
        offset += part.len() as u64;
    }
    offset
}
