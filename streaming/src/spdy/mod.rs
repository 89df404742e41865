//! SPDY/3.1 as Kubernetes clients speak it: [`frame`] and [`headers`] are pure, [`connection`] runs
//! them over a socket. There is no flow control (no client of this protocol has it): what holds a
//! sender up is the connection, and what a connection may hold in memory is bounded.

pub mod client;
pub mod connection;
mod dictionary;
pub mod frame;
pub mod headers;
#[cfg(test)]
mod tests;
