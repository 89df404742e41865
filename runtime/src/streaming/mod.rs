//! Exec, Attach and PortForward: what the streaming server (the crate `bulkhead-streaming`) serves is
//! found and connected here.
//!
//! - `prepare`: the three CRI calls, which check a request and answer with a URL.
//! - `exec`, `attach`, `forward`: what happens when a client comes with the URL: the container's
//!   agent is found, and the client's streams are connected to a session with it.
//!
//! Not here: what the guest does (`agent/src/rpc/session.rs`), logs (`logs`, of which an attach gets
//! a copy).

mod attach;
mod error;
mod exec;
mod forward;
mod prepare;
mod resize;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use bulkhead_streaming::{
    Attach, Backend, Exec, Listening, ServerError, Session, Settings, Timeouts, TlsFiles,
};
use tokio::net::UnixStream;

pub use error::StreamingError;
pub use prepare::{attach, exec, port_forward};

use crate::app::App;

/// How long a client gets to close its end after it has everything.
const LINGER: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });

/// Binds the configured address; from here on, URLs can be given out.
///
/// # Errors
/// The address cannot be listened on, or certificate or key cannot be used.
pub async fn listen(app: &App) -> Result<Listening, ServerError> {
    let configured = &app.config.streaming;
    let settings = Settings {
        address: configured.address,
        tls: configured.tls.as_ref().map(|files| TlsFiles {
            certificate: files.certificate.clone(),
            key: files.key.clone(),
        }),
        timeouts: Timeouts {
            idle: configured.idle_timeout,
            creation: configured.creation_timeout,
            linger: LINGER,
        },
    };
    bulkhead_streaming::listen(settings, Arc::clone(&app.streaming)).await
}

impl Backend for App {
    async fn exec(&self, exec: Exec, session: Session) {
        exec::serve(self, exec, session).await;
    }

    async fn attach(&self, attach: Attach, session: Session) {
        attach::serve(self, attach, session).await;
    }

    async fn connect(&self, pod: &str, port: u16) -> Result<UnixStream, String> {
        forward::connect(self, pod, port).await
    }
}
