//! The agent from the daemon's side: the gRPC channel and sessions (through the VMM's vsock socket,
//! or to a socket on the host), the report that it is ready, and its errors.

mod command;
mod connect;
mod error;
mod frames;
mod ready;

pub use command::Command;
pub use connect::{Address, Agent, Client, MAX_MESSAGE, connect, connect_lazily, dial};
pub use error::AgentError;
pub use frames::{Event, Frames, Parser};
pub use ready::ReadyListener;
