//! The agent from the daemon's side: the gRPC channel (through the VMM's vsock socket, or to a socket on the
//! host), the report
//! that it is ready, and its errors.

mod connect;
mod error;
mod ready;

pub use connect::{Address, Agent, Client, connect, connect_lazily, dial};
pub use error::AgentError;
pub use ready::ReadyListener;
