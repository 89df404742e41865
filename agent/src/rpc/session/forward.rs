//! A TCP connection inside the pod.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use bulkhead_proto::agent::session_request::Forward;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::Status;

use super::reply::{answer, opened, refuse};

/// For a connection to the pod's own loopback address.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
const READ_SIZE: usize = 64 * 1024;

/// Copies bytes both ways until both ends are closed.
pub async fn serve<S>(mut stream: S, to: Forward) -> io::Result<()>
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
        .ok_or_else(|| {
            Status::invalid_argument(format!("{port} is not a TCP port (1 to 65535)"))
        })?;
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
            // The error of the first address says more: a pod without IPv6 has no ::1 at all.
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
