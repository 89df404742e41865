//! What a pod's containers run in: a virtual machine, or the host. Everything else about pods is
//! the same for both, and asks here for what is not.

use std::path::PathBuf;

use super::SandboxError;
use crate::{
    agent::Address,
    config::Paths,
    host::HostDir,
    records::{MachineKind, VmExit},
    vmm::{self, Control, JailDir},
};

/// What one pod runs in.
#[derive(Debug, Clone)]
pub enum Machine {
    /// A virtual machine of its own.
    Vm {
        /// Its VMM's control socket.
        control: Control,
        /// Its VMM's directory.
        jail: JailDir,
    },
    /// The host, in namespaces and a cgroup of its own as far as it did not ask for the host's.
    Host {
        /// Its agent's directory.
        dir: HostDir,
    },
}

impl Machine {
    /// Of a pod, by its id.
    pub fn of_pod(kind: MachineKind, paths: &Paths, id: &str) -> Self {
        let dir = paths.pod(id);
        match kind {
            MachineKind::Vm => Self::vm(JailDir::of_pod(&dir)),
            MachineKind::Host => Self::Host {
                dir: HostDir::of_pod(&dir),
            },
        }
    }

    /// The virtual machine whose VMM has this directory.
    pub fn vm(jail: JailDir) -> Self {
        Self::Vm {
            control: Control::new(jail.control()),
            jail,
        }
    }

    /// Which it is.
    pub fn kind(&self) -> MachineKind {
        match self {
            Self::Vm { .. } => MachineKind::Vm,
            Self::Host { .. } => MachineKind::Host,
        }
    }

    /// Where its agent serves.
    pub fn agent(&self) -> Address {
        match self {
            Self::Vm { jail, .. } => Address::Vsock(jail.vsock()),
            Self::Host { dir } => Address::Unix(dir.socket()),
        }
    }

    /// Where its agent reports that it is ready.
    pub fn ready(&self) -> PathBuf {
        match self {
            Self::Vm { jail, .. } => jail.vsock_port(bulkhead_proto::agent::READY_PORT),
            Self::Host { dir } => dir.ready(),
        }
    }

    /// What the guest's kernel and agent say: its console; on the host the agent's log.
    pub fn console(&self) -> PathBuf {
        match self {
            Self::Vm { jail, .. } => jail.console(),
            Self::Host { dir } => dir.log(),
        }
    }

    /// How it ended. Blocks.
    pub fn read_exit(&self, at: i64) -> VmExit {
        match self {
            Self::Vm { jail, .. } => {
                vmm::read_exit(vmm::THE_VMM, &jail.exit(), &jail.console(), at)
            }
            Self::Host { dir } => vmm::read_exit("the pod's agent", &dir.exit(), &dir.log(), at),
        }
    }
}

/// A pod's VMM, for what only a virtual machine has.
pub(super) fn control<'a>(id: &str, machine: &'a Machine) -> Result<&'a Control, SandboxError> {
    match machine {
        Machine::Vm { control, .. } => Ok(control),
        Machine::Host { .. } => Err(SandboxError::NoVm { id: id.to_owned() }),
    }
}
