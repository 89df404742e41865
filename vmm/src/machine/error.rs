//! What can go wrong with a machine.

use std::io;
use std::os::fd::RawFd;

use crate::arch::x86_64::acpi::AcpiError;
use crate::arch::x86_64::boot::BootError;
use crate::devices::serial::SerialError;
use crate::event_loop::EventLoopError;
use crate::memory::MemoryError;
use crate::pci::PciError;
use crate::platform::PlatformError;
use crate::vcpu::VcpuError;
use crate::virtio::device::DeviceError;
use crate::virtio::pci::{TransportError, TransportRestoreError};
use crate::vm::VmError;

/// Any failure of a machine, by the part it comes from.
#[derive(Debug, thiserror::Error)]
#[allow(
    missing_docs,
    reason = "the variants carry the errors of the modules they are named for"
)]
pub enum MachineError {
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    #[error(transparent)]
    Vm(#[from] VmError),
    #[error(transparent)]
    Platform(#[from] PlatformError),
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    #[error(transparent)]
    Pci(#[from] PciError),
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error(transparent)]
    TransportRestore(#[from] TransportRestoreError),
    #[error(transparent)]
    DeviceCall(#[from] DeviceError),
    #[error(transparent)]
    EventLoop(#[from] EventLoopError),
    #[error(transparent)]
    Serial(#[from] SerialError),
    /// A request to pin makes no sense.
    #[error("pinning vCPUs: {0}")]
    Pin(String),
    /// A device could not be made.
    #[error("making device {id}: {source}")]
    Device {
        /// Its id.
        id: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A descriptor of the configuration is not open.
    #[error("descriptor {fd} for {what}: {source}; it must be inherited from the caller")]
    Descriptor {
        /// Its number.
        fd: RawFd,
        /// What it is for.
        what: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A system call failed.
    #[error("{attempted}: {source}")]
    Io {
        /// What was attempted.
        attempted: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A request in a state that does not allow it.
    #[error("cannot {attempted} while the VM is {state}")]
    WrongState {
        /// What was asked.
        attempted: &'static str,
        /// The state.
        state: &'static str,
    },
    /// No device of this id.
    #[error("there is no disk {0}")]
    NotFound(String),
    /// A device of this id is there.
    #[error("there is a device {0} already")]
    Exists(String),
    /// The guest's driver still runs the device.
    #[error(
        "the guest still uses {0}: it must remove the device first (its `remove` file in sysfs)"
    )]
    InUse(String),
    /// A size beyond what the machine was made for.
    #[error(
        "resizing to {wanted} {what}: this VM can have {least} to {most} (its configuration has \
         max_vcpus and max_memory_mib)"
    )]
    Size {
        /// Of what.
        what: &'static str,
        /// What was asked.
        wanted: u64,
        /// The least.
        least: u64,
        /// The most.
        most: u64,
    },
    /// Memory was added.
    #[error("cannot write a snapshot of a VM that had memory added")]
    Grown,
    /// The state file is not one.
    #[error("reading the state of the snapshot: {0}")]
    BadState(String),
    /// Configuration and snapshot differ.
    #[error("the configuration does not fit the snapshot: {0}")]
    Mismatch(String),
}

impl MachineError {
    /// Gives a system call's failure its circumstances.
    pub fn io(attempted: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let attempted = attempted.into();
        move |source| MachineError::Io { attempted, source }
    }
}
