//! Containers: their life in a pod's guest, their output, their statistics. One file per CRI
//! call. What a container is stands in its record; what the guest does to it comes as events.
//!
//! Not here: pods (`sandbox`), the files of logs (`logs`), the OCI spec (`oci`), images.

mod attach;
mod catch_up;
mod create;
mod disks;
mod error;
mod exec;
mod find;
mod guest_events;
mod layer_files;
mod live;
mod pod_life;
mod remove;
mod samples;
mod start;
mod stats;
mod status;
mod stop;
mod sweep;
mod update;

pub use attach::follow_output;
pub use create::create;
pub(crate) use disks::implied_directories;
pub use error::ContainerError;
pub use exec::{Output, exec_sync, running};
pub use live::Containers;
pub use pod_life::{pod_gone, pod_ready, pod_removed, pod_stopping};
pub use remove::remove;
pub use start::start;
pub use stats::{list as list_stats, one as stats, pressure, to_cri};
pub use status::{list, status};
pub use stop::stop;
pub use sweep::recover;
pub use update::{reopen_log, update};

#[cfg(test)]
mod tests;
