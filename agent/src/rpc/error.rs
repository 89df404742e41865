//! What can go wrong with the guest as a whole.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::blocking::EndedEarly;
use crate::container::ContainerError;
use crate::container::cgroup::CgroupError;
use crate::cpus::CpuError;
use crate::disk::DiskError;
use crate::memory::MemoryError;
use crate::net::NetError;

/// What can go wrong with the guest as a whole.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Network, files, sysctls.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The scratch disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The processors.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// The containers' memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The shared PID namespace.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// An invalid field.
    #[error("{field}: {expected}")]
    Invalid {
        /// Which.
        field: &'static str,
        /// What it may be.
        expected: &'static str,
    },
    /// The kernel refused.
    #[error("{what}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        error: Errno,
    },
    /// A file.
    #[error("{what} {}", path.display())]
    File {
        /// What was attempted.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The clock.
    #[error("{what}")]
    Clock {
        /// What was attempted.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
    /// The limit on processes.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Blocking work did not return.
    #[error(transparent)]
    EndedEarly(#[from] EndedEarly),
}
