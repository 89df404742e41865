//! Virtual CPUs: one thread each, how these are started, paused and ended (`gate`), where they run
//! (`affinity`), and what happens when a CPU exits (`run`). Registers are the architecture's: `arch`.

mod affinity;
mod error;
pub mod gate;
mod run;

pub use error::VcpuError;
pub use run::{Bus, VcpuThread, install_kick_handler};
