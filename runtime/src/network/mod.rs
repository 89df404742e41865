//! A pod's network on the host: its namespace, the tap in it, what the CNI plugins add, and what
//! of that the guest must know.
//!
//! [`PodNetwork::prepare`] comes before the VMM starts (it gives the tap), [`PodNetwork::attach`]
//! runs while the guest boots (for a pod on the host without a tap), [`PodNetwork::teardown`] undoes both and may be repeated. Not here:
//! configuring the guest's own interfaces, which is the agent's work.

mod cni;
mod error;
mod link;
mod netns;

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use bulkhead_proto::{agent, cri::PodSandboxConfig};
pub use cni::validate;
use cni::{Attachment, Cni, CniDns, POD_INTERFACE, kubernetes_args};
pub use error::NetworkError;

use crate::config::{Config, NetworkMode};

/// The largest an Ethernet frame's payload gets on virtio-net (virtio 1.2 §5.1.4.1). The device
/// offers it, so that the guest can take whatever MTU the CNI interface turns out to have.
const MAX_MTU: u32 = 65_535;

/// How pods get their network, by the configuration.
#[derive(Debug)]
pub struct PodNetwork {
    mode: NetworkMode,
    cni: Cni,
    namespaces: PathBuf,
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

impl PodNetwork {
    /// By the configuration.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let network = &config.network;
        Self {
            mode: network.mode,
            cni: Cni::new(
                network.cni_conf_dir.clone(),
                network.cni_bin_dirs.clone(),
                network.cni_timeout,
                config.paths.state_dir.join("cni"),
            ),
            namespaces: config.paths.run_dir.join("netns"),
        }
    }

    /// Whether pods can have their network now; the error's text is the condition's message.
    /// Reads a few small files.
    ///
    /// # Errors
    /// What is missing.
    pub fn ready(&self) -> Result<(), NetworkError> {
        match self.mode {
            NetworkMode::None => Ok(()),
            NetworkMode::Cni => self.cni.conf().map(drop),
        }
    }

    /// The network namespace file a pod will have; `None` if it gets no network.
    #[must_use]
    pub fn netns(&self, sandbox_id: &str) -> Option<PathBuf> {
        match self.mode {
            NetworkMode::None => None,
            NetworkMode::Cni => Some(self.namespaces.join(sandbox_id)),
        }
    }

    /// Makes the namespace and the tap.
    ///
    /// # Errors
    /// If the kernel refuses; the namespace may then be there, for `teardown`.
    pub async fn prepare(&self, sandbox_id: &str) -> Result<Vec<Nic>, NetworkError> {
        let Some(path) = self.netns(sandbox_id) else {
            return Ok(Vec::new());
        };
        create(&path).await?;
        let tap = link::make_tap(&path).await?;
        Ok(vec![Nic {
            tap,
            mac: device_mac(sandbox_id),
            mtu: MAX_MTU,
        }])
    }

    /// Makes the namespace alone: a pod on the host has the CNI interface itself.
    ///
    /// # Errors
    /// If the kernel refuses; the namespace may then be there, for `teardown`.
    pub async fn prepare_namespace(&self, sandbox_id: &str) -> Result<(), NetworkError> {
        match self.netns(sandbox_id) {
            Some(path) => create(&path).await,
            None => Ok(()),
        }
    }

    /// Has CNI set the pod's network up, and ties it to the tap, if there is one.
    ///
    /// # Errors
    /// Those of CNI and the kernel; what was set up by then is for `teardown`.
    pub async fn attach(
        &self,
        sandbox_id: &str,
        config: &PodSandboxConfig,
        nics: &[agent::Interface],
    ) -> Result<Attached, NetworkError> {
        let Some(path) = self.netns(sandbox_id) else {
            return Ok(Attached::default());
        };
        let result = self
            .cni
            .add(attachment(sandbox_id, &path, config), config)
            .await?;
        let network = match nics.first() {
            Some(nic) => link::tie(&path, nic.mac.clone()).await?,
            None => link::look(&path).await?,
        };
        Ok(Attached {
            network,
            dns: dns(&result.dns),
            addresses: result
                .pod_addresses()
                .iter()
                .map(ToString::to_string)
                .collect(),
        })
    }

    /// Removes everything that `prepare` and `attach` made, as far as it exists.
    ///
    /// # Errors
    /// If a plugin or the kernel refuses; the call can be repeated.
    pub async fn teardown(
        &self,
        sandbox_id: &str,
        config: &PodSandboxConfig,
        netns: &Path,
    ) -> Result<(), NetworkError> {
        // With the namespace still there: plugins look into it. What is left of the pod outside
        // (addresses, firewall rules) goes too when it is not (spec 1.1, DEL).
        let undone = self.cni.del(attachment(sandbox_id, netns, config)).await;
        remove(netns).await?;
        undone
    }

    /// The pods that have a network here: those that CNI's cache or a namespace names.
    ///
    /// # Errors
    /// If one of both cannot be listed.
    pub async fn ids(&self) -> Result<Vec<String>, NetworkError> {
        let mut ids = self.cni.known().await?;
        ids.extend(self.namespace_ids().await?);
        ids.sort();
        ids.dedup();
        Ok(ids)
    }

    /// Takes away networks that no record owns. A failure is logged, and keeps no other from it.
    pub async fn sweep(&self, ids: &[String]) {
        for id in ids {
            tracing::info!(sandbox = %id, "removing a network that no record owns");
            let path = self.namespaces.join(id);
            if let Err(error) = self.teardown(id, &PodSandboxConfig::default(), &path).await {
                tracing::warn!(
                    sandbox = %id, "cannot remove a network that no record owns: {}",
                    crate::error::chain(&error)
                );
            }
        }
    }

    async fn namespace_ids(&self) -> Result<Vec<String>, NetworkError> {
        let dir = self.namespaces.clone();
        blocking(&self.namespaces, move || {
            let failed = |source| NetworkError::Namespace {
                what: "list",
                path: dir.clone(),
                source,
            };
            let entries = match std::fs::read_dir(&dir) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
                entries => entries.map_err(failed)?,
            };
            entries
                .map(|entry| {
                    entry
                        .map(|e| e.file_name().to_string_lossy().into_owned())
                        .map_err(failed)
                })
                .collect()
        })
        .await
    }
}

fn attachment(sandbox_id: &str, netns: &Path, config: &PodSandboxConfig) -> Attachment {
    Attachment {
        container_id: sandbox_id.to_owned(),
        netns: netns.to_owned(),
        ifname: POD_INTERFACE,
        args: kubernetes_args(sandbox_id, config),
    }
}

/// A hardware address of the guest's device, locally administered, from the pod's id. Only the
/// agent goes by it: on the wire the interface has the CNI interface's address.
fn device_mac(sandbox_id: &str) -> String {
    let digits: String = sandbox_id
        .chars()
        .filter(char::is_ascii_hexdigit)
        .take(8)
        .collect();
    let number = u32::from_str_radix(&digits, 16).unwrap_or(1);
    let [a, b, c, d] = number.to_be_bytes();
    format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

fn dns(dns: &CniDns) -> Option<agent::Dns> {
    if *dns == CniDns::default() {
        return None;
    }
    let mut searches = dns.search.clone();
    if searches.is_empty() && !dns.domain.is_empty() {
        searches.push(dns.domain.clone());
    }
    Some(agent::Dns {
        servers: dns.nameservers.clone(),
        searches,
        options: dns.options.clone(),
    })
}

async fn blocking<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| {
        Err(NetworkError::Thread {
            path: path.to_owned(),
            what: "ended badly",
        })
    })
}

async fn create(path: &Path) -> Result<(), NetworkError> {
    let target = path.to_owned();
    blocking(path, move || netns::create(&target)).await
}

async fn remove(path: &Path) -> Result<(), NetworkError> {
    let target = path.to_owned();
    blocking(path, move || netns::remove(&target)).await
}

#[cfg(test)]
mod tests;
