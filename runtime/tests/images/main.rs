//! The image service against a real registry (Debian's docker-registry) and against a hostile one
//! that the test is itself. Nothing outside this machine is asked.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "helpers of tests may fail by panicking"
)]

mod archives;
mod fixture;
mod hostile;
mod mirrors;
mod platforms;
mod proxy;
mod real;
mod server;
mod sharing;
mod tls;
