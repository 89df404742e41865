//! Exec and attach: the remote-command protocols over the streams of a connection, up to the last
//! word on the error stream. [`exec`] and [`attach`] connect them to a process.

mod attach;
mod exec;
mod resize;
mod status;

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};

pub(super) use self::status::Format;
use self::status::Outcome;
pub(super) use self::{attach::attach, exec::exec};
use super::{
    Times, Wanted,
    channel::{Incoming, Line, Outgoing},
    hangup::HangUp,
    spdy::{
        connection::{self, Limits, Stream},
        headers::Headers,
    },
    upgrade::Upgrade,
    websocket,
};

/// Streams a client can have in these protocols; a few more are refused one by one.
const STREAMS: usize = 8;

/// What a client has opened.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) stdin: Option<Incoming>,
    pub(super) stdout: Option<Outgoing>,
    pub(super) stderr: Option<Outgoing>,
    pub(super) resize: Option<Incoming>,
    error: Outgoing,
    /// Our ends of streams on which only the client speaks: closed at the end.
    silent: Vec<Outgoing>,
    format: Format,
    line: Line,
}

/// A stream's part in the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Stdin,
    Stdout,
    Stderr,
    Error,
    Resize,
}

impl Role {
    pub(super) const ALL: [Self; 5] = [
        Self::Stdin,
        Self::Stdout,
        Self::Stderr,
        Self::Error,
        Self::Resize,
    ];

    fn of(headers: &Headers) -> Option<Self> {
        match headers.get("streamtype")? {
            "stdin" => Some(Self::Stdin),
            "stdout" => Some(Self::Stdout),
            "stderr" => Some(Self::Stderr),
            "error" => Some(Self::Error),
            "resize" => Some(Self::Resize),
            _ => None,
        }
    }

    /// Whether a session has it.
    pub(super) fn is_wanted(self, wanted: Wanted, resizes: bool) -> bool {
        match self {
            Self::Stdin => wanted.stdin,
            Self::Stdout => wanted.stdout,
            Self::Stderr => wanted.stderr,
            Self::Error => true,
            Self::Resize => wanted.tty && resizes,
        }
    }
}

/// The streams as they are opened.
#[derive(Debug, Default)]
pub(super) struct Roles {
    found: Vec<(Role, Incoming, Outgoing)>,
}

impl Roles {
    pub(super) fn add(&mut self, role: Role, incoming: Incoming, outgoing: Outgoing) {
        self.found.push((role, incoming, outgoing));
    }

    pub(super) fn has(&self, role: Role) -> bool {
        self.found.iter().any(|(known, ..)| *known == role)
    }

    /// `None` if there is no error stream.
    pub(super) fn session(self, format: Format, line: Line) -> Option<Session> {
        let (mut stdin, mut stdout, mut stderr, mut error, mut resize) =
            (None, None, None, None, None);
        let mut silent = Vec::new();
        for (role, incoming, outgoing) in self.found {
            match role {
                Role::Stdin => {
                    stdin = Some(incoming);
                    silent.push(outgoing);
                }
                Role::Resize => {
                    resize = Some(incoming);
                    silent.push(outgoing);
                }
                Role::Stdout => stdout = Some(outgoing),
                Role::Stderr => stderr = Some(outgoing),
                Role::Error => error = Some(outgoing),
            }
        }
        Some(Session {
            stdin,
            stdout,
            stderr,
            resize,
            error: error?,
            silent,
            format,
            line,
        })
    }
}

/// Waits until the client has opened what it asked for. `None`, with a word in the log, if it does
/// not.
pub(super) async fn open<S>(
    upgrade: Upgrade,
    io: S,
    hang_up: HangUp,
    times: Times,
    wanted: Wanted,
) -> Option<Session>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match upgrade {
        Upgrade::WebSocket { protocol, .. } => websocket::remote(io, protocol, wanted, times).await,
        Upgrade::Spdy(protocol) => {
            let limits = Limits {
                streams: STREAMS,
                idle: times.idle,
            };
            let admit = Box::new(|headers: &Headers| Role::of(headers).is_some());
            let (line, streams) = connection::serve(io, limits, hang_up, admit);
            let resizes = matches!(protocol, "v3.channel.k8s.io" | "v4.channel.k8s.io");
            let gathered = tokio::select! {
                gathered = tokio::time::timeout(
                    times.creation,
                    gather(streams, wanted, resizes),
                ) => gathered.ok().flatten(),
                () = line.gone() => None,
            };
            if gathered.is_none() {
                tracing::debug!("a client did not open the streams it asked for");
            }
            gathered?.session(Format::of(protocol), line)
        }
    }
}

async fn gather(
    mut streams: mpsc::Receiver<Stream>,
    wanted: Wanted,
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
            stream
                .outgoing
                .abort(super::spdy::frame::Reset::Refused)
                .await;
            continue;
        }
        roles.add(role, stream.incoming, stream.outgoing);
    }
    Some(roles)
}

impl Session {
    /// Returns when the client is gone.
    pub(super) fn gone(&self) -> impl Future<Output = ()> + Send + use<> {
        self.line.gone()
    }

    /// The end: everything sent so far gets there, then the outcome, then all streams are closed.
    pub(super) async fn finish(self, outcome: Outcome) {
        let last = async {
            for output in [&self.stdout, &self.stderr].into_iter().flatten() {
                output.finish().await;
            }
            if let Some(text) = self.format.text(&outcome) {
                let _gone = self.error.send(text.into()).await;
            }
            self.error.finish().await;
            for stream in &self.silent {
                stream.finish().await;
            }
        };
        tokio::select! {
            () = last => {}
            () = self.line.gone() => return,
        }
        self.line.finish().await;
    }
}
