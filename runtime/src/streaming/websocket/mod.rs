//! WebSocket: channels by the first byte of each message ([`codec`], pure), for exec, attach and the
//! older port-forward, and SPDY carried inside ([`tunnel`]).

mod codec;
mod connection;
mod tunnel;

use tokio::io::{AsyncRead, AsyncWrite};

use self::{codec::Codec, connection::Channels};
pub(super) use self::{
    connection::{Forwarded, forwards},
    tunnel::tunnel,
};
use super::{
    Times, Wanted,
    remote::{Format, Role, Roles, Session},
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
pub(super) async fn remote<S>(
    io: S,
    protocol: &'static str,
    wanted: Wanted,
    times: Times,
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
    let line = channels.serve(io, times.idle).await;
    if let Some(first) = first {
        // Older clients take an empty message as the word that the connection stands.
        first.touch().await.ok()?;
    }
    roles.session(Format::of(protocol), line)
}
