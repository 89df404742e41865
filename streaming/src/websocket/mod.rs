//! WebSocket: channels by the first byte of each message ([`codec`], pure), for exec, attach and the
//! older port-forward, and SPDY carried inside (`tunnel`).

pub mod codec;
mod connection;
mod tunnel;

use tokio::io::{AsyncRead, AsyncWrite};

use self::{codec::Codec, connection::Channels};
pub(crate) use self::{
    connection::{Forwarded, forwards},
    tunnel::tunnel,
};
use crate::{
    session::{Role, Roles, Session},
    settings::Timeouts,
    status::Format,
    target::StandardStreams,
};

/// The channel of a role.
fn channel(role: Role) -> u8 {
    match role {
        Role::Stdin => 0,
        Role::Stdout => 1,
        Role::Stderr => 2,
        Role::Error => 3,
        Role::Resize => 4,
    }
}

/// Exec and attach. All channels are there from the start.
pub(crate) async fn remote<S>(
    io: S,
    protocol: &'static str,
    wanted: StandardStreams,
    timeouts: Timeouts,
) -> Option<Session>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut channels = Channels::new(Codec::of(protocol));
    let mut roles = Roles::default();
    let mut first = None;
    for role in Role::ALL {
        if !role.is_wanted(wanted, true) {
            continue;
        }
        let (incoming, outgoing) = channels.open(channel(role));
        // The lowest channel on which the client listens.
        if first.is_none() && matches!(role, Role::Stdout | Role::Stderr | Role::Error) {
            first = Some(outgoing.clone());
        }
        roles.add(role, incoming, outgoing);
    }
    let connection = channels.serve(io, timeouts).await;
    if let Some(first) = first {
        // Older clients take an empty message as the sign that the connection is up.
        first.touch().await.ok()?;
    }
    roles.session(Format::of(protocol), connection)
}
