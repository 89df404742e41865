//! Seeing that a client has gone while nothing is read from it: its data waits in the socket, and
//! the end behind it cannot be read yet, but the kernel tells of it (EPOLLRDHUP).

use std::{io, os::fd::AsFd as _};

use tokio::{io::Interest, net::TcpStream};

/// Watches a socket by a descriptor of its own, on which nothing is ever read.
#[derive(Debug)]
pub struct HangUp(Option<TcpStream>);

impl HangUp {
    /// Of this socket. One that cannot be watched is taken to stay: what notices the end then is the
    /// next read or write.
    pub fn of(socket: &TcpStream) -> Self {
        let twin = || -> io::Result<TcpStream> {
            let twin = socket.as_fd().try_clone_to_owned()?;
            TcpStream::from_std(twin.into())
        };
        Self(
            twin()
                .inspect_err(|error| tracing::debug!(%error, "a socket cannot be watched"))
                .ok(),
        )
    }

    /// Of nothing.
    pub fn never() -> Self {
        Self(None)
    }

    /// Returns when the other end has closed.
    pub async fn wait(&self) {
        let Some(watched) = &self.0 else {
            return std::future::pending().await;
        };
        loop {
            match watched.ready(Interest::READABLE).await {
                Ok(ready) if ready.is_read_closed() => return,
                // Data: waiting for the next event, which is what this error asks for.
                Ok(_) => {
                    let again = || io::Result::<()>::Err(io::ErrorKind::WouldBlock.into());
                    let _waits = watched.try_io(Interest::READABLE, again);
                }
                Err(_) => return,
            }
        }
    }
}
