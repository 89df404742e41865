//! What can go wrong before a client is connected.

use std::{io, net::SocketAddr, path::PathBuf};

/// A failure of the streaming server.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Too many URLs that nobody has used yet.
    #[error(
        "{limit} streaming URLs wait to be used; one that is not used within a minute frees its place"
    )]
    Full {
        /// How many there may be.
        limit: usize,
    },
    /// No server yet.
    #[error("the streaming server does not listen yet; try again when the daemon has started")]
    NotListening,
    /// The address cannot be listened on.
    #[error("cannot listen for streaming on {address} (streaming.address in the configuration)")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Certificate or key.
    #[error("cannot use {path} for the streaming server: {what}")]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The system's source of random numbers.
    #[error("cannot make a token")]
    Random {
        /// Why.
        source: io::Error,
    },
}
