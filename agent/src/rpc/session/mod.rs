//! Sessions: connections of their own for bulk bytes (`bulkhead_proto::session`). An exec whose
//! process lives as long as its connection (`exec`), the output of a container (`output`), the
//! input of a process that runs (`input`), a TCP connection inside the pod (`forward`). Nothing
//! here shares a buffer with the service's HTTP/2 streams.

mod exec;
mod forward;
mod input;
mod output;
mod reply;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_proto::agent::SessionRequest;
use bulkhead_proto::agent::session_request::What;
use bulkhead_proto::session::{self, MAX_REQUEST};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::timeout;
use tonic::Status;

use self::reply::refuse;
use crate::container::Containers;

/// For the whole request to come: the daemon writes it in one go.
const REQUEST_DEADLINE: Duration = Duration::from_secs(30);

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
        Some(What::Exec(request)) => exec::serve(stream, containers, request).await,
        Some(What::Output(request)) => output::serve(stream, &containers, request).await,
        Some(What::Input(process)) => input::serve(stream, &containers, process).await,
        Some(What::Forward(to)) => forward::serve(stream, to).await,
        None => {
            let status = Status::invalid_argument("the session request is empty");
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
