//! Pods: how one comes up, is asked about, and goes. One file per RPC, each reading validate,
//! plan, act, record; no lock is held while a VM boots.

mod cpu_plan;
pub(crate) mod cpus;
mod dns;
mod ending;
mod error;
mod find;
mod growth;
mod guest_clock;
mod guest_setup;
mod list;
mod monitor;
mod names;
pub(crate) mod oom_score;
mod pids;
mod placement;
mod pod;
mod pods;
mod recovery;
mod release;
mod remove;
mod resize;
mod run;
mod scratch;
mod settle;
mod sizing;
mod status;
mod stop;
mod timeline;
mod validate;

pub use error::SandboxError;
pub(crate) use find::find;
pub use list::list;
pub use pod::Pod;
pub use pods::Pods;
pub use recovery::recover;
pub use remove::remove;
pub use resize::update;
pub(crate) use resize::{Change, fit};
pub use run::run;
pub use status::status;
pub use stop::stop;
pub use timeline::Timeline;

/// The serial of a pod's writable disk.
pub(crate) const SCRATCH: &str = "scratch";
