//! The streaming server: Exec, Attach and PortForward answer with a URL, and this is what serves it.
//!
//! - `tokens`: what a URL stands for, for one minute and one use. `prepare`: the three CRI calls.
//! - `server`: listening, TLS, HTTP, the upgrade (`upgrade`: which protocol, pure).
//! - `spdy`, `websocket`: the two ways to have several streams in one connection; `channel`: the
//!   streams themselves, all bounded.
//! - `remote`: exec and attach over streams. `forward`: port-forward.
//!
//! Not here: what the guest does (`agent/src/rpc/session.rs`), logs (`logs`, of which an attach gets a
//! copy).

pub mod channel;
mod error;
mod forward;
mod hangup;
mod prepare;
mod remote;
mod server;
pub mod spdy;
#[cfg(test)]
mod tests;
mod tokens;
mod upgrade;
mod websocket;

use std::{net::SocketAddr, sync::OnceLock, time::Duration};

pub use error::StreamingError;
pub use prepare::{attach, exec, port_forward};
pub use server::{Listening, listen};
pub use tokens::Tokens;

/// What a URL is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A command.
    Exec(Exec),
    /// A container's own process.
    Attach(Attach),
    /// Ports of a pod.
    PortForward(PortForward),
}

impl Target {
    /// The first part of the URL's path.
    pub fn path(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::Attach(_) => "attach",
            Self::PortForward(_) => "portforward",
        }
    }
}

/// Which standard streams a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Input.
    pub stdin: bool,
    /// Output.
    pub stdout: bool,
    /// Errors; never with a terminal, which has one output.
    pub stderr: bool,
    /// A terminal.
    pub tty: bool,
}

/// A command to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// The container's id.
    pub container: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Its streams.
    pub wanted: Wanted,
}

/// A container to attach to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attach {
    /// The container's id.
    pub container: String,
    /// The streams.
    pub wanted: Wanted,
}

/// A pod to forward to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortForward {
    /// The sandbox's id.
    pub sandbox: String,
    /// Ports, for the one kind of client that does not name them itself.
    pub ports: Vec<u16>,
}

/// Times of the streaming server.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Silence after which a connection is closed.
    pub idle: Duration,
    /// For a client to open the streams it asked for.
    pub creation: Duration,
}

/// The streaming server's part of the daemon's state.
#[derive(Debug, Default)]
pub struct Streaming {
    tokens: Tokens,
    base: OnceLock<String>,
}

impl Streaming {
    /// The URL for a target, once.
    pub fn url(&self, target: Target) -> Result<String, StreamingError> {
        let base = self.base.get().ok_or(StreamingError::NotListening)?;
        let path = target.path();
        let token = self.tokens.give(target)?;
        Ok(format!("{base}/{path}/{token}"))
    }

    /// Says where the server listens. Only the first word counts.
    fn listens(&self, scheme: &str, address: SocketAddr) {
        let mut reachable = address;
        if address.ip().is_unspecified() {
            // The kubelet is on this node.
            reachable.set_ip(match address {
                SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            });
        }
        let _known = self.base.set(format!("{scheme}://{reachable}"));
    }
}
