//! Pods: how one comes up, is asked about, and goes. One file per RPC, each reading validate,
//! plan, act, record; no lock is held while a VM boots.

mod error;
mod pods;

pub use error::SandboxError;
pub use pods::{Pod, Pods};
