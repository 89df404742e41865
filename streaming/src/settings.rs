//! How the server is to listen and how long it waits for clients.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// All settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where to listen. Port 0 takes a free one.
    pub address: SocketAddr,
    /// Speak TLS with this certificate.
    pub tls: Option<TlsFiles>,
    /// How long clients are waited for.
    pub timeouts: Timeouts,
}

/// PEM files.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The chain, the server's own certificate first.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// How long clients are waited for.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Silence after which a connection is closed.
    pub idle: Duration,
    /// For a client to open the streams it asked for.
    pub creation: Duration,
    /// For a client to close its end after it has received everything.
    pub linger: Duration,
}
