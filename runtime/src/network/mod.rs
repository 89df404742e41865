//! A pod's network on the host: its namespace, the tap in it, what the CNI plugins add, and what
//! of that the guest must be told.
//!
//! [`PodNetwork::prepare`] comes before the VMM starts (it gives the tap), [`PodNetwork::attach`]
//! runs while the guest boots, [`PodNetwork::teardown`] undoes both and may be repeated.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use bulkhead_proto::{agent, cri::PodSandboxConfig};
use tonic::Code;

use crate::{
    config::{Config, NetworkMode},
    error::Grpc,
};

/// How pods get their network, by the configuration.
#[derive(Debug)]
pub struct PodNetwork {
    mode: NetworkMode,
}

/// One network device of a pod's VM.
#[derive(Debug)]
pub struct Nic {
    /// The tap's queue, for the VMM.
    pub tap: OwnedFd,
    /// The hardware address the guest's device has.
    pub mac: String,
    /// The device's MTU.
    pub mtu: u32,
}

/// What the guest and the status need to know of a network that is set up.
#[derive(Debug, Clone, Default)]
pub struct Attached {
    /// Interfaces, routes and neighbours, for the agent.
    pub network: agent::Network,
    /// Name servers CNI knows; CRI's dns_config goes before.
    pub dns: Option<agent::Dns>,
    /// The pod's addresses without prefix, the primary first.
    pub addresses: Vec<String>,
}

/// What can go wrong with a pod's network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// CNI is configured.
    #[error(
        "pod networks by CNI are not in this build; set `mode = \"none\"` in the configuration's \
         section [network] for pods without a network"
    )]
    Unsupported,
}

impl Grpc for NetworkError {
    fn code(&self) -> Code {
        match self {
            Self::Unsupported => Code::Unimplemented,
        }
    }
}

impl PodNetwork {
    /// By the configuration.
    pub fn new(config: &Config) -> Self {
        Self {
            mode: config.network.mode,
        }
    }

    /// Whether pods can have their network now; the error's text is the condition's message.
    pub fn ready(&self) -> Result<(), NetworkError> {
        match self.mode {
            NetworkMode::None => Ok(()),
            NetworkMode::Cni => Err(NetworkError::Unsupported),
        }
    }

    /// The network namespace file a pod will have; `None` if it gets no network.
    pub fn netns(&self, _sandbox_id: &str) -> Option<PathBuf> {
        None
    }

    /// Makes the namespace and the tap.
    pub async fn prepare(&self, _sandbox_id: &str) -> Result<Vec<Nic>, NetworkError> {
        self.ready()?;
        Ok(Vec::new())
    }

    /// Has CNI set the pod's network up.
    pub async fn attach(
        &self,
        _sandbox_id: &str,
        _config: &PodSandboxConfig,
        _nics: &[agent::Interface],
    ) -> Result<Attached, NetworkError> {
        self.ready()?;
        Ok(Attached::default())
    }

    /// Takes everything away that `prepare` and `attach` made, as far as it is there.
    pub async fn teardown(
        &self,
        _sandbox_id: &str,
        _config: &PodSandboxConfig,
        _netns: &Path,
    ) -> Result<(), NetworkError> {
        Ok(())
    }

    /// Takes away the networks of pods that no record knows.
    pub async fn sweep(&self, _known: &[String]) -> Result<(), NetworkError> {
        Ok(())
    }
}
