//! Standard input of a process that runs.

use std::io;

use bulkhead_proto::agent::ProcessRef;
use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf};
use tonic::Status;

use super::reply::{answer, opened, refuse};
use crate::container::{AnyProcess, Containers};
use crate::process::Process;
use crate::rpc::status;

const READ_SIZE: usize = 64 * 1024;

/// Feeds the process until the session or the process ends.
pub async fn serve<S>(mut stream: S, containers: &Containers, process: ProcessRef) -> io::Result<()>
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
    let once = match &process {
        AnyProcess::Exec(_) => true,
        AnyProcess::First(container) => container.stdin_once,
    };
    let mut exit = process.exit.clone();
    tokio::select! {
        () = feed(read, &process, once) => {}
        () = exit.wait_raw() => {}
    }
    write.shutdown().await
}

/// The session's bytes into the process's input, until either ends; then what still comes is
/// dropped, so that the daemon does not wait for ever.
/// `once`: their end is the end of the process's input.
pub async fn feed<S>(mut read: ReadHalf<S>, process: &Process, once: bool)
where
    S: AsyncRead + AsyncWrite,
{
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
    // A terminal has no half-close.
    if once && !process.has_terminal() {
        *process.stdin.lock().await = None;
    }
}
