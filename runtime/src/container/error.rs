//! What can go wrong with a container.

use bulkhead_images::ImagesError;
use bulkhead_records::RecordsError;
use tonic::Code;

use crate::{
    agent::AgentError,
    error::{Grpc, io_code},
    logs::LogError,
    machine::{MachineError, host::ProfileError},
    oci::{OciError, apparmor::AppArmorError},
    records::ContainerState,
    sandbox::SandboxError,
    task::TaskError,
    volumes::VolumeError,
};

/// A failure in the life of a container.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// No such container.
    #[error("there is no container {id}")]
    NotFound {
        /// What was asked for.
        id: String,
    },
    /// The beginning of more than one id.
    #[error("{id:?} is the beginning of more than one container id; give more of it")]
    Ambiguous {
        /// What was given.
        id: String,
    },
    /// A field the request must have is not there or makes no sense.
    #[error("the request cannot be used: {field} {what}")]
    Invalid {
        /// The field, as CRI names it.
        field: &'static str,
        /// What is wrong, and what would be right.
        what: String,
    },
    /// Another container of the pod has the name.
    #[error(
        "the pod sandbox {sandbox} has a container {name:?} (attempt {attempt}) already: {id}; \
         remove it first, or count the attempt up"
    )]
    NameTaken {
        /// The pod.
        sandbox: String,
        /// The name.
        name: String,
        /// Its attempt.
        attempt: u32,
        /// Who has it.
        id: String,
    },
    /// Not in this state.
    #[error("cannot {action} the container {id}: it is {state}, and must be {needed}")]
    State {
        /// What was asked.
        action: &'static str,
        /// The container.
        id: String,
        /// As it is.
        state: &'static str,
        /// As it would have to be.
        needed: &'static str,
    },
    /// The container whose PID namespace is to be shared.
    #[error("cannot share the processes of container {id}: {why}")]
    Target {
        /// `target_id` of the request.
        id: String,
        /// What is wrong.
        why: &'static str,
    },
    /// Its processes did not end.
    #[error(
        "the processes of container {id} did not end within {seconds} s of SIGKILL; the guest may \
         be stuck: stopping the pod ends it"
    )]
    StillRunning {
        /// The container.
        id: String,
        /// How long it had.
        seconds: u64,
    },
    /// A command did not end in the time CRI gave it.
    #[error("the command in container {id} did not end within {seconds} s and was killed")]
    ExecTimeout {
        /// The container.
        id: String,
        /// How long it had.
        seconds: u64,
    },
    /// The agent's answer is not in the contract.
    #[error("the agent broke the protocol while {during}: {what}")]
    Protocol {
        /// What was going on.
        during: &'static str,
        /// What was wrong.
        what: &'static str,
    },
    /// The config cannot be carried out.
    #[error(transparent)]
    Oci(#[from] OciError),
    /// The AppArmor profile.
    #[error(transparent)]
    AppArmor(#[from] AppArmorError),
    /// The default AppArmor profile of pods on the host.
    #[error(transparent)]
    HostProfile(#[from] ProfileError),
    /// A mount or device.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The image.
    #[error(transparent)]
    Image(#[from] ImagesError),
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The pod.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The agent.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The pod's machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The records.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// An operating-system call failed.
    #[error("cannot {action}")]
    Os {
        /// What was attempted, on what.
        action: String,
        /// Why.
        source: std::io::Error,
    },
    /// Its task did not come to its end.
    #[error(transparent)]
    Task(#[from] TaskError),
}

impl Grpc for ContainerError {
    fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } => Code::NotFound,
            Self::Ambiguous { .. } | Self::Invalid { .. } | Self::Target { .. } => {
                Code::InvalidArgument
            }
            Self::NameTaken { .. } => Code::AlreadyExists,
            Self::State { .. } => Code::FailedPrecondition,
            Self::StillRunning { .. } | Self::ExecTimeout { .. } => Code::DeadlineExceeded,
            Self::Protocol { .. } => Code::Internal,
            Self::Oci(e) => e.code(),
            Self::AppArmor(e) => e.code(),
            Self::HostProfile(e) => e.code(),
            Self::Volume(e) => e.code(),
            Self::Image(e) => e.code(),
            Self::Log(e) => e.code(),
            Self::Sandbox(e) => e.code(),
            Self::Agent(e) => e.code(),
            Self::Machine(e) => e.code(),
            Self::Records(e) => e.code(),
            Self::Os { source, .. } => io_code(source),
            Self::Task(e) => e.code(),
        }
    }
}

/// A state in words.
pub(super) fn in_words(state: ContainerState) -> &'static str {
    match state {
        ContainerState::Creating => "being created",
        ContainerState::Created => "created and not started",
        ContainerState::Running => "running",
        ContainerState::Exited => "exited",
        ContainerState::Unknown => "in an unknown state",
    }
}
