//! What the end-to-end tests and the benchmark share. Only test programs use this crate.
//!
//! [`images`] makes what is pulled; [`host`] starts a registry and a daemon around it; [`cri`] is
//! the project's own client; [`leaks`] compares the machine before and after; [`suite`] runs the
//! tests of [`cases`], [`waiting`] waits; [`conformance`] runs critest; [`kube`]
//! has a real Kubernetes around Bulkhead; [`mod@bench`] is the benchmark.
#![forbid(unsafe_code)]
// Tests: a wrong index is a failed test, printing is what they are for.
#![allow(clippy::indexing_slicing, clippy::print_stdout, clippy::print_stderr)]

pub mod bench;
pub mod cases;
pub mod conformance;
pub mod cri;
pub mod host;
pub mod images;
pub mod kube;
pub mod leaks;
mod pod_cgroup;
pub mod suite;
pub mod waiting;

/// Why a test failed: text for the reader, with whatever it came from.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;
/// What a test gives.
pub type Outcome = Result<(), Failure>;

/// Fails the test unless the condition holds; the message says what was seen.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!("{}:{}: {}", file!(), line!(), format!($($message)+)).into());
        }
    };
}
