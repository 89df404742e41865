//! The streaming server: Exec, Attach and PortForward answer with a URL, and this is what serves it.
//!
//! - `urls`, `tokens`: what a URL stands for, for one minute and one use; `target`: what that
//!   can be.
//! - `server`: listening, TLS, HTTP, the upgrade (`upgrade`: which protocol, pure).
//! - [`spdy`], `websocket`: the two ways to have several streams in one connection; [`channel`]:
//!   the streams themselves, all bounded.
//! - `remote`: a client's streams for exec and attach, which make a `session`. `forward`:
//!   port-forward.
//!
//! Not here: what is at the other end of a session. The server meets it through [`Backend`]; it
//! knows no CRI, no pods and no agents, only the names that it was given for a URL.
#![forbid(unsafe_code)]

mod backend;
pub mod channel;
mod error;
mod forward;
mod hangup;
mod remote;
mod server;
mod session;
mod settings;
pub mod spdy;
mod status;
mod target;
mod terminal_size;
mod tokens;
mod upgrade;
mod urls;
pub mod websocket;

pub use backend::Backend;
pub use error::ServerError;
pub use server::{Listening, listen};
pub use session::Session;
pub use settings::{Settings, Timeouts, TlsFiles};
pub use status::Outcome;
pub use target::{Attach, Exec, PortForward, StandardStreams, Target};
pub use terminal_size::{TerminalSize, TerminalSizes};
pub use urls::Urls;
