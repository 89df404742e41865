//! Virtual CPUs: one thread each, their registers, and what happens when they exit.
//!
//! `entry` holds the registers of a boot, `cpuid` what the guest is told of its CPU, `state` the
//! saved form, `gate` how threads are started, paused and ended.

pub mod cpuid;
pub mod entry;
mod error;
pub mod gate;
mod run;
pub mod state;

pub use error::VcpuError;
pub use run::{Bus, VcpuThread, install_kick_handler};
