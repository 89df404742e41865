//! What can go wrong with a pod's network, and which gRPC code each is.

use std::{io, path::PathBuf, time::Duration};

use tonic::Code;

use crate::{
    error::{Grpc, io_code},
    task::TaskError,
};

/// A failure in a pod's network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// There is no network configuration yet.
    #[error(
        "no CNI configuration in {dir}: put a .conflist file there (`bulkhead check` says how)"
    )]
    NoConfig {
        /// The directory looked in.
        dir: PathBuf,
    },
    /// A configuration file or the directory of them cannot be read.
    #[error("cannot read the CNI configuration {path}")]
    ReadConfig {
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A configuration file does not say what it must.
    #[error("the CNI configuration {path} is not usable: {what}")]
    BadConfig {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what is allowed.
        what: String,
    },
    /// A pod's bandwidth annotation is not one.
    #[error(
        "the annotation {annotation} is {value:?}; allowed: bits per second as a quantity from 1k to 1P, like 10M"
    )]
    Bandwidth {
        /// Which.
        annotation: &'static str,
        /// What it says.
        value: String,
    },
    /// A plugin's program is not installed.
    #[error(
        "the CNI plugin {plugin:?} is in none of {dirs:?}: install it (Debian: \
         containernetworking-plugins) or set network.cni_bin_dirs"
    )]
    PluginMissing {
        /// The plugin's type.
        plugin: String,
        /// Where it was looked for.
        dirs: Vec<PathBuf>,
    },
    /// A plugin's program could not be started or talked to.
    #[error("cannot run the CNI plugin {program} for {verb}")]
    PluginStart {
        /// Its path.
        program: PathBuf,
        /// ADD, DEL…
        verb: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// A plugin failed.
    #[error("the CNI plugin {plugin:?} failed {verb} (code {error_code}): {message}")]
    PluginFailed {
        /// The plugin's type.
        plugin: String,
        /// ADD, DEL…
        verb: &'static str,
        /// CNI's error code (spec 1.1, "Error").
        error_code: u64,
        /// Its message and details.
        message: String,
    },
    /// A plugin did not end.
    #[error("the CNI plugin {plugin:?} did not finish {verb} within {limit:?} and was killed")]
    PluginTimeout {
        /// The plugin's type.
        plugin: String,
        /// ADD, DEL…
        verb: &'static str,
        /// What it was given.
        limit: Duration,
    },
    /// What a plugin printed is not a CNI result.
    #[error("the CNI plugin {plugin:?} gave no usable result for {verb}: {what}")]
    PluginOutput {
        /// The plugin's type.
        plugin: String,
        /// ADD, DEL…
        verb: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// The result of the last ADD cannot be kept or read.
    #[error("cannot {what} the CNI result {path}")]
    Cache {
        /// keep, read, remove.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The namespace cannot be made, entered or removed.
    #[error("cannot {what} the network namespace {path}")]
    Namespace {
        /// What was attempted.
        what: &'static str,
        /// Its file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The tap cannot be made.
    #[error("cannot make the tap in {path} (is the module tun loaded? see `bulkhead check`)")]
    Tap {
        /// The namespace's file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The kernel refused a change or a question by netlink.
    #[error("cannot {what} in the network namespace {path}")]
    Netlink {
        /// What was attempted.
        what: &'static str,
        /// The namespace's file.
        path: PathBuf,
        /// The kernel's answer.
        source: rtnetlink::Error,
    },
    /// CNI succeeded and the interface is not there.
    #[error("CNI reported success but left no interface {name} in {path}")]
    NoInterface {
        /// The interface CNI was asked for.
        name: &'static str,
        /// The namespace's file.
        path: PathBuf,
    },
    /// The CNI interface is of a kind that no virtual network card stands for.
    #[error(
        "the CNI interface {name} in {path} is not Ethernet: a virtual machine cannot have it (run \
         the pod by the handler \"host\", or use a plugin that makes a veth, macvlan or ipvlan)"
    )]
    NotEthernet {
        /// The interface.
        name: String,
        /// The namespace's file.
        path: PathBuf,
    },
    /// The plugins left more interfaces than a pod can have.
    #[error(
        "the CNI plugins left {number} interfaces in {path}; a pod can have {}",
        super::pod_link::MAX_INTERFACES
    )]
    TooManyInterfaces {
        /// How many there are.
        number: usize,
        /// The namespace's file.
        path: PathBuf,
    },
    /// Its task did not come to its end.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// A thread in a namespace ended badly.
    #[error("a helper thread for the network namespace {path} {what}")]
    Thread {
        /// The namespace's file.
        path: PathBuf,
        /// What happened to it.
        what: &'static str,
    },
}

impl Grpc for NetworkError {
    fn code(&self) -> Code {
        match self {
            Self::NoConfig { .. }
            | Self::BadConfig { .. }
            | Self::PluginMissing { .. }
            | Self::NotEthernet { .. }
            | Self::TooManyInterfaces { .. } => Code::FailedPrecondition,
            Self::Bandwidth { .. } => Code::InvalidArgument,
            // CNI error 11: try again later.
            Self::PluginFailed { error_code: 11, .. } => Code::Unavailable,
            Self::PluginTimeout { .. } => Code::DeadlineExceeded,
            Self::PluginStart { source, .. }
            | Self::Namespace { source, .. }
            | Self::Cache { source, .. }
            | Self::ReadConfig { source, .. }
            | Self::Tap { source, .. } => io_code(source),
            Self::PluginFailed { .. }
            | Self::PluginOutput { .. }
            | Self::Netlink { .. }
            | Self::NoInterface { .. }
            | Self::Thread { .. } => Code::Internal,
            Self::Task(e) => e.code(),
        }
    }
}
