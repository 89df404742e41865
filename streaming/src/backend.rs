//! What the server needs from its owner.

use tokio::net::UnixStream;

use crate::{
    session::Session,
    target::{Attach, Exec},
};

/// The other end of what clients ask for.
pub trait Backend: Send + Sync + 'static {
    /// Runs a command and connects it to the client's streams, up to [`Session::finish`]. A client
    /// that goes away ([`Session::gone`]) ends the command.
    fn exec(&self, exec: Exec, session: Session) -> impl Future<Output = ()> + Send;

    /// Connects a container's own process to the client's streams, up to [`Session::finish`].
    fn attach(&self, attach: Attach, session: Session) -> impl Future<Output = ()> + Send;

    /// Connects to a port inside a pod.
    ///
    /// # Errors
    /// The text that the client is shown.
    fn connect(
        &self,
        pod: &str,
        port: u16,
    ) -> impl Future<Output = Result<UnixStream, String>> + Send;
}
