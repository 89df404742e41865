//! What can go wrong with control groups.

use std::path::PathBuf;

use tonic::Code;

use crate::error::{Grpc, io_code};

/// A failure with a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The host has no unified hierarchy there.
    #[error(
        "{root} is not a cgroup version 2 hierarchy (it has no cgroup.controllers): boot the host with \
         systemd.unified_cgroup_hierarchy=1, or set cgroup.root to where version 2 is mounted"
    )]
    NotV2 {
        /// The configured root.
        root: PathBuf,
    },
    /// A file or directory of a cgroup refuses an operation.
    #[error("cannot {action} the cgroup {path}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It cannot be bound to processors.
    #[error(
        "cannot bind the cgroup {path} to processors or memory nodes: it has no cpuset.cpus; the controller \
         cpuset must be in cgroup.controllers of each cgroup above it"
    )]
    NoCpuset {
        /// Which.
        path: PathBuf,
    },
    /// Something in it does not end.
    #[error("processes in the cgroup {path} did not end within {seconds} s of being killed")]
    Busy {
        /// Which.
        path: PathBuf,
        /// How long they had.
        seconds: u64,
    },
}

impl Grpc for CgroupError {
    fn code(&self) -> Code {
        match self {
            Self::NotV2 { .. } | Self::NoCpuset { .. } => Code::FailedPrecondition,
            Self::Io { source, .. } => io_code(source),
            Self::Busy { .. } => Code::DeadlineExceeded,
        }
    }
}
