//! A client's streams for exec and attach, from when they are all open up to the last word on the
//! error stream.

use crate::{
    channel::{Connection, Incoming, Outgoing},
    spdy::headers::Headers,
    status::{Format, Outcome},
    target::StandardStreams,
    terminal_size::TerminalSizes,
};

/// What a client has opened.
#[derive(Debug)]
pub struct Session {
    /// From the client to the process.
    pub stdin: Option<Incoming>,
    /// To the client.
    pub stdout: Option<Outgoing>,
    /// To the client; never with a terminal.
    pub stderr: Option<Outgoing>,
    /// The sizes of the client's window.
    pub sizes: Option<TerminalSizes>,
    error: Outgoing,
    /// Our ends of streams on which only the client speaks: closed at the end.
    silent: Vec<Outgoing>,
    format: Format,
    connection: Connection,
}

/// A stream's part in the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Stdin,
    Stdout,
    Stderr,
    Error,
    Resize,
}

impl Role {
    pub(crate) const ALL: [Self; 5] = [
        Self::Stdin,
        Self::Stdout,
        Self::Stderr,
        Self::Error,
        Self::Resize,
    ];

    pub(crate) fn of(headers: &Headers) -> Option<Self> {
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
    pub(crate) fn is_wanted(self, streams: StandardStreams, resizes: bool) -> bool {
        match self {
            Self::Stdin => streams.stdin,
            Self::Stdout => streams.stdout,
            Self::Stderr => streams.stderr,
            Self::Error => true,
            Self::Resize => streams.tty && resizes,
        }
    }
}

/// The streams as they are opened.
#[derive(Debug, Default)]
pub(crate) struct Roles {
    found: Vec<(Role, Incoming, Outgoing)>,
}

impl Roles {
    pub(crate) fn add(&mut self, role: Role, incoming: Incoming, outgoing: Outgoing) {
        self.found.push((role, incoming, outgoing));
    }

    pub(crate) fn has(&self, role: Role) -> bool {
        self.found.iter().any(|(known, ..)| *known == role)
    }

    /// `None` if there is no error stream.
    pub(crate) fn session(self, format: Format, connection: Connection) -> Option<Session> {
        let (mut stdin, mut stdout, mut stderr, mut error, mut sizes) =
            (None, None, None, None, None);
        let mut silent = Vec::new();
        for (role, incoming, outgoing) in self.found {
            match role {
                Role::Stdin => {
                    stdin = Some(incoming);
                    silent.push(outgoing);
                }
                Role::Resize => {
                    sizes = Some(TerminalSizes::new(incoming));
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
            sizes,
            error: error?,
            silent,
            format,
            connection,
        })
    }
}

impl Session {
    /// Returns when the client is gone.
    pub fn gone(&self) -> impl Future<Output = ()> + Send + use<> {
        self.connection.gone()
    }

    /// The end: everything sent so far gets there, then the outcome, then all streams are closed.
    pub async fn finish(self, outcome: Outcome) {
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
            () = self.connection.gone() => return,
        }
        self.connection.finish().await;
    }
}
