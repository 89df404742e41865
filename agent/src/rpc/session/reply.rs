//! The status that answers a session's request.

use std::io;

use bulkhead_proto::agent::SessionResponse;
use bulkhead_proto::session;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tonic::{Code, Status};

/// Writes the status a session begins with.
///
/// # Errors
/// If the connection is gone.
pub(super) async fn answer<S: AsyncWrite + Unpin>(
    stream: &mut S,
    status: &Status,
) -> io::Result<()> {
    let response = SessionResponse {
        code: i32::from(status.code()).unsigned_abs(),
        message: status.message().chars().take(4096).collect(),
    };
    stream.write_all(&session::answer(&response)).await?;
    stream.flush().await
}

/// Writes a status other than Ok and closes the connection.
pub(super) async fn refuse<S: AsyncWrite + Unpin>(mut stream: S, status: &Status) {
    // A daemon that went away needs no answer.
    let _ = answer(&mut stream, status).await;
    let _ = stream.shutdown().await;
}

/// The status of a session that begins.
pub(super) fn opened() -> Status {
    Status::new(Code::Ok, "")
}
