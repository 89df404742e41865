//! Exec and attach: waiting until a client has opened the streams that it asked for.

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};

use crate::{
    hangup::HangUp,
    session::{Role, Roles, Session},
    settings::Timeouts,
    spdy::{
        self,
        connection::{Limits, Stream},
        frame::Reset,
        headers::Headers,
    },
    status::Format,
    target::StandardStreams,
    upgrade::Upgrade,
    websocket,
};

/// Streams a client can have in these protocols; a few more are refused one by one.
const STREAMS: usize = 8;

/// Waits until the client has opened what it asked for. `None`, and a line in the log, if it does
/// not.
pub(crate) async fn open<S>(
    upgrade: Upgrade,
    io: S,
    hang_up: HangUp,
    timeouts: Timeouts,
    wanted: StandardStreams,
) -> Option<Session>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match upgrade {
        Upgrade::WebSocket { protocol, .. } => {
            websocket::remote(io, protocol, wanted, timeouts).await
        }
        Upgrade::Spdy(protocol) => {
            let limits = Limits {
                streams: STREAMS,
                timeouts,
            };
            let admit = Box::new(|headers: &Headers| Role::of(headers).is_some());
            let (connection, streams) = spdy::connection::serve(io, limits, hang_up, admit);
            let resizes = matches!(protocol, "v3.channel.k8s.io" | "v4.channel.k8s.io");
            let gathered = tokio::select! {
                gathered = tokio::time::timeout(
                    timeouts.creation,
                    gather(streams, wanted, resizes),
                ) => gathered.ok().flatten(),
                () = connection.gone() => None,
            };
            if gathered.is_none() {
                tracing::debug!("a client did not open the streams it asked for");
            }
            gathered?.session(Format::of(protocol), connection)
        }
    }
}

async fn gather(
    mut streams: mpsc::Receiver<Stream>,
    wanted: StandardStreams,
    resizes: bool,
) -> Option<Roles> {
    let mut roles = Roles::default();
    let complete = |roles: &Roles| {
        Role::ALL
            .iter()
            .all(|role| roles.has(*role) || !role.is_wanted(wanted, resizes))
    };
    while !complete(&roles) {
        let stream = streams.recv().await?;
        let role = Role::of(&stream.headers)?;
        if roles.has(role) || !role.is_wanted(wanted, resizes) {
            stream.outgoing.abort(Reset::Refused).await;
            continue;
        }
        roles.add(role, stream.incoming, stream.outgoing);
    }
    Some(roles)
}
