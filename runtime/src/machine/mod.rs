//! What a pod's containers run in, behind one trait: a virtual machine of its own (`vm`), or the
//! node, in namespaces and a cgroup of its own (`host`). What differs between the two is here and
//! nowhere else; which of both a pod gets is for `sandbox` to say.

mod error;
mod exit;
pub mod host;
mod interface;
mod process;
pub mod vm;

use std::sync::Arc;

pub use error::MachineError;
pub use interface::{Machine, Start, Started};
pub use process::Process;

use crate::{
    config::Paths,
    records::{MachineKind, SandboxRecord},
};

/// The machine of a pod on record.
pub fn of_record(record: &SandboxRecord, paths: &Paths) -> Arc<dyn Machine> {
    let dir = paths.pod(&record.id);
    match record.machine {
        MachineKind::Vm => Arc::new(vm::VirtualMachine::of_pod(&dir, record.joins_layers)),
        MachineKind::Host => Arc::new(host::HostMachine::of_pod(&record.id, &dir)),
    }
}
