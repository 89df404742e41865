//! What can go wrong with a pod.

use bulkhead_contract::exit::Reason;
use bulkhead_records::RecordsError;
use tonic::Code;

use crate::{
    agent::AgentError,
    cgroup::{CgroupError, ParentError},
    error::Grpc,
    machine::MachineError,
    network::NetworkError,
    task::TaskError,
};

/// A failure in the life of a pod.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// No such pod.
    #[error("there is no pod sandbox {id}")]
    NotFound {
        /// What was asked for.
        id: String,
    },
    /// The beginning of more than one id.
    #[error("{id:?} is the beginning of more than one pod sandbox id; give more of it")]
    Ambiguous {
        /// What was given.
        id: String,
    },
    /// It does not run (any more).
    #[error("the pod sandbox {id} is not ready: {why}")]
    NotReady {
        /// Which.
        id: String,
        /// Why, as far as known.
        why: String,
    },
    /// Another pod has the name.
    #[error("the name {name} is taken by the pod sandbox {id}; remove it first")]
    NameTaken {
        /// namespace/name, uid and attempt.
        name: String,
        /// Who has it.
        id: String,
    },
    /// The request makes no sense.
    #[error("the pod's configuration cannot be used: {what}")]
    Invalid {
        /// What is wrong, and what would be right.
        what: String,
    },
    /// A pod that this handler cannot run.
    #[error("{what}")]
    Unsupported {
        /// What, and what to do.
        what: String,
    },
    /// No such RuntimeClass handler.
    #[error("there is no runtime handler {handler:?}; there are {there}{advice}")]
    Handler {
        /// What was asked for.
        handler: String,
        /// What there are.
        there: String,
        /// How to have the one asked for, if that can be.
        advice: &'static str,
    },
    /// `cgroup_parent` names no cgroup.
    #[error("the pod's cgroup_parent {parent:?} cannot be used: {source}")]
    CgroupParent {
        /// As given.
        parent: String,
        /// Why.
        source: ParentError,
    },
    /// All user ids for VMMs are in use.
    #[error(
        "all {count} user ids for VMMs from {base} on are in use; remove pods, or raise \
         vmm.uid_count in the configuration"
    )]
    NoUid {
        /// The first of the range.
        base: u32,
        /// How many there are.
        count: u32,
    },
    /// The pod's cgroup on the host failed.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The records failed.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// The machine failed: the VMM, or the agent on the host.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The agent failed.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The network failed.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The VM, or the agent on the host, ended while the pod was being started.
    #[error("the pod ended while it started ({reason}): {message}{}", console(.console_tail))]
    Died {
        /// As in exit.json, or `Killed`.
        reason: Reason,
        /// The VMM's words.
        message: String,
        /// The end of the guest's console.
        console_tail: String,
    },
    /// The guest came to nothing in the time it had.
    #[error(
        "the pod runs, but its agent did not report within {seconds} s (boot.timeout_secs){}",
        console(.console_tail)
    )]
    Silent {
        /// How long it had.
        seconds: u64,
        /// The end of the guest's console.
        console_tail: String,
    },
    /// The guest does not take the memory it is offered.
    #[error(
        "the VM of the pod sandbox {id} has {got_mib} MiB of memory instead of {wanted_mib}: its \
         guest did not take more within {seconds} s; its console (bulkhead console {id}) may say why"
    )]
    Resize {
        /// Which.
        id: String,
        /// How much it was to have.
        wanted_mib: u64,
        /// How much it has.
        got_mib: u64,
        /// How long it had.
        seconds: u32,
    },
    /// A set of processors or memory nodes that the pod cannot have.
    #[error("{field} is {value:?}, which cannot be written to {}: {why}", file(.field))]
    CpuSet {
        /// As CRI names it.
        field: &'static str,
        /// What was given.
        value: String,
        /// The kernel's words, and what could be had.
        why: String,
    },
    /// Containers whose processors must not be each other's.
    #[error(
        "the cpuset_cpus of the containers of the pod sandbox {id} need {needed} virtual CPUs to be kept \
         apart, and its VM has {there}: give the pod a higher CPU limit, or raise sandbox.max_vcpus"
    )]
    TooFewCpus {
        /// The pod.
        id: String,
        /// At least so many are needed.
        needed: usize,
        /// So many there are.
        there: usize,
    },
    /// The limits of a container cannot be written down: a bug.
    #[error(transparent)]
    Oci(#[from] crate::oci::OciError),
    /// The mounts of the host's volumes.
    #[error(transparent)]
    Volume(#[from] crate::volumes::VolumeError),
    /// Something is left to do for its containers.
    #[error("the containers of the pod sandbox {id} cannot be brought to their end yet")]
    Containers {
        /// The pod.
        id: String,
        /// What kind of failure it is.
        code: Code,
        /// The first of them.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
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

/// The cgroup's file for a field of CRI's.
fn file(field: &str) -> String {
    field.replacen('_', ".", 1)
}

/// What a console's end says, shortly: the line of a kernel's panic, else the last lines. Only for
/// people; nothing is decided by it.
fn console(tail: &str) -> String {
    if let Some(panic) = tail.lines().find(|line| line.contains("Kernel panic")) {
        return format!("; its console: {}", panic.trim());
    }
    let last: Vec<&str> = tail
        .lines()
        .rev()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .take(3)
        .collect();
    if last.is_empty() {
        return "; its console is empty".to_owned();
    }
    let last: Vec<&str> = last.into_iter().rev().collect();
    format!("; its console ends: {}", last.join(" | "))
}

impl SandboxError {
    /// For what a pod's end or removal could not do for its containers.
    pub(super) fn containers(id: &str, source: impl Grpc + Send + Sync + 'static) -> Self {
        Self::Containers {
            id: id.to_owned(),
            code: source.code(),
            source: Box::new(source),
        }
    }
}

impl Grpc for SandboxError {
    fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } | Self::Handler { .. } => Code::NotFound,
            Self::NotReady { .. } | Self::Unsupported { .. } | Self::TooFewCpus { .. } => {
                Code::FailedPrecondition
            }
            Self::Oci(e) => e.code(),
            Self::NameTaken { .. } => Code::AlreadyExists,
            Self::Ambiguous { .. } | Self::Invalid { .. } | Self::CpuSet { .. } => {
                Code::InvalidArgument
            }
            Self::CgroupParent { source, .. } => source.code(),
            Self::Records(e) => e.code(),
            Self::Machine(e) => e.code(),
            Self::Agent(e) => e.code(),
            Self::Network(e) => e.code(),
            Self::Died { .. } => Code::Internal,
            Self::Silent { .. } | Self::Resize { .. } => Code::DeadlineExceeded,
            Self::NoUid { .. } => Code::ResourceExhausted,
            Self::Cgroup(e) => e.code(),
            Self::Volume(e) => e.code(),
            Self::Containers { code, .. } => *code,
            Self::Os { source, .. } => crate::error::io_code(source),
            Self::Task(e) => e.code(),
        }
    }
}
