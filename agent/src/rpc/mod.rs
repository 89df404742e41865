//! The agent's service (`service`), what its calls work on (`agent`), and one file per call or kind
//! of call that does more than delegate. This is the only place that knows gRPC codes ([`status`]).

mod agent;
mod clock;
pub mod container;
pub mod error;
pub mod events;
pub mod resize;
pub mod sandbox;
mod service;
pub mod session;
pub mod stats;
pub mod status;
pub mod terminal;

pub use self::agent::Agent;
