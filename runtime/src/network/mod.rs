//! A pod's network on the host: its namespace, the tap in it, what the CNI plugins add, and what
//! of that the guest must know.
//!
//! [`PodNetwork::prepare`] comes before the VMM starts: it gives the tap of the one interface that
//! nearly every pod has. [`PodNetwork::attach`] runs while the guest boots (for a pod on the host
//! without a tap), and gives a tap for each further interface that the plugins left: those are
//! plugged into the machine that runs. [`PodNetwork::teardown`] undoes both and may be repeated. Not
//! here: configuring the guest's own interfaces, which is the agent's work.

mod cni;
mod describe;
mod error;
mod link;
mod namespaces;
mod netlink;
mod netns;
mod pod_link;
mod sysctl;

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use bulkhead_proto::{agent, cri::PodSandboxConfig};
pub use cni::validate;
use cni::{Attachment, Cni, CniDns, POD_INTERFACE, kubernetes_args};
pub use error::NetworkError;
use namespaces::Namespaces;
use sysctl::Parameters;
use tokio::sync::OnceCell;

use crate::{
    config::{Config, NetworkMode},
    task::blocking,
};

/// The largest an Ethernet frame's payload gets on virtio-net (virtio 1.2 §5.1.4.1). The device
/// offers it, so that the guest can take whatever MTU the CNI interface turns out to have.
const MAX_MTU: u32 = 65_535;

/// How pods get their network, by the configuration.
#[derive(Debug)]
pub struct PodNetwork {
    mode: NetworkMode,
    cni: Cni,
    namespaces: Namespaces,
    /// Kernel parameters of a new namespace.
    fresh: OnceCell<Parameters>,
}

/// One network device of a pod's VM.
#[derive(Debug)]
pub struct Nic {
    /// Its name for the VMM.
    pub id: String,
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
            namespaces: Namespaces::new(
                network.netns_dir.clone(),
                config.paths.run_dir.join("netns"),
            ),
            fresh: OnceCell::new(),
        }
    }

    /// Whether pods can have their network now; the error's text is the condition's message.
    /// Reads a few small files, and asks plugins that can say.
    ///
    /// # Errors
    /// What is missing.
    pub async fn ready(&self) -> Result<(), NetworkError> {
        match self.mode {
            NetworkMode::None => Ok(()),
            NetworkMode::Cni => self.cni.status().await,
        }
    }

    /// The network namespace file a pod will have; `None` if it gets no network.
    #[must_use]
    pub fn netns(&self, sandbox_id: &str) -> Option<PathBuf> {
        match self.mode {
            NetworkMode::None => None,
            NetworkMode::Cni => Some(self.namespaces.path(sandbox_id)),
        }
    }

    /// Makes the namespace and the tap of its first interface.
    ///
    /// # Errors
    /// If the kernel refuses; the namespace may then be there, for `teardown`.
    pub async fn prepare(&self, sandbox_id: &str) -> Result<Vec<Nic>, NetworkError> {
        let Some(path) = self.netns(sandbox_id) else {
            return Ok(Vec::new());
        };
        self.namespaces.create(sandbox_id).await?;
        let tap = link::make_tap(&path).await?;
        Ok(vec![Nic {
            id: device_id(0),
            tap,
            mac: device_mac(sandbox_id, 0),
            mtu: MAX_MTU,
        }])
    }

    /// Makes the namespace alone: a pod on the host has the CNI interface itself.
    ///
    /// # Errors
    /// If the kernel refuses; the namespace may then be there, for `teardown`.
    pub async fn prepare_namespace(&self, sandbox_id: &str) -> Result<(), NetworkError> {
        match self.netns(sandbox_id) {
            Some(_) => self.namespaces.create(sandbox_id).await,
            None => Ok(()),
        }
    }

    /// Has CNI set the pod's network up. With a machine that has the tap (`has_tap`), ties that to the
    /// CNI interface, and gives a device for each further one, for the machine to take in.
    ///
    /// # Errors
    /// Those of CNI and the kernel; what was set up by then is for `teardown`.
    pub async fn attach(
        &self,
        sandbox_id: &str,
        config: &PodSandboxConfig,
        has_tap: bool,
    ) -> Result<(Attached, Vec<Nic>), NetworkError> {
        let Some(path) = self.netns(sandbox_id) else {
            return Ok(Default::default());
        };
        let added = self.cni.add(attachment(sandbox_id, &path, config), config);
        let (network, later, result) = if has_tap {
            let (added, fresh) = tokio::join!(added, self.fresh());
            let result = added?;
            let id = sandbox_id.to_owned();
            let mac = move |number| device_mac(&id, number);
            let (network, later) = link::tie(&path, mac, fresh?).await?;
            (network, later, result)
        } else {
            let result = added.await?;
            (link::look(&path).await?, Vec::new(), result)
        };
        let attached = Attached {
            network,
            dns: dns(&result.dns),
            addresses: result
                .addresses_of(POD_INTERFACE)
                .iter()
                .map(ToString::to_string)
                .collect(),
        };
        let nic = |(number, later): (usize, link::LaterTap)| Nic {
            id: device_id(number + 1),
            tap: later.tap,
            mac: later.mac,
            mtu: MAX_MTU,
        };
        Ok((attached, later.into_iter().enumerate().map(nic).collect()))
    }

    /// What a new namespace has of kernel parameters; looked at once.
    async fn fresh(&self) -> Result<Parameters, NetworkError> {
        let look = async || {
            let path = Path::new("of no pod");
            blocking(move || {
                netns::in_new(|| sysctl::read(&[])).map_err(|source| NetworkError::Namespace {
                    what: "look at",
                    path: path.to_owned(),
                    source,
                })
            })
            .await
        };
        self.fresh.get_or_try_init(look).await.cloned()
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
        // (addresses, firewall rules) goes too when it is not, after a reboot: then none is named
        // (spec 1.1, DEL).
        let there = self.namespaces.exists(netns).await;
        let named = if there { netns } else { Path::new("") };
        let undone = self.cni.del(attachment(sandbox_id, named, config)).await;
        self.namespaces.remove(sandbox_id, netns).await?;
        undone
    }

    /// Whether the network of a pod that runs is still as it was made, by what the plugins say.
    ///
    /// # Errors
    /// What is wrong; the plugins are not asked to mend it.
    pub async fn check(
        &self,
        sandbox_id: &str,
        config: &PodSandboxConfig,
        netns: &Path,
    ) -> Result<(), NetworkError> {
        self.cni.check(attachment(sandbox_id, netns, config)).await
    }

    /// Has the plugins free what is of no pod. `pods` gives those that there are, or are being made;
    /// none is added while that is asked and acted upon. A failure is logged.
    pub async fn collect(&self, pods: impl FnOnce() -> Vec<String> + Send) {
        if self.mode == NetworkMode::None {
            return;
        }
        match self.cni.collect(pods).await {
            // Until there is a configuration there is nothing to collect.
            Ok(()) | Err(NetworkError::NoConfig { .. }) => {}
            Err(error) => tracing::warn!(
                "the CNI plugins' garbage is not collected: {}",
                crate::error::chain(&error)
            ),
        }
    }

    /// The pods that have a network here: those that CNI's cache or a namespace names.
    ///
    /// # Errors
    /// If one of both cannot be listed.
    pub async fn ids(&self) -> Result<Vec<String>, NetworkError> {
        let mut ids = self.cni.known().await?;
        ids.extend(self.namespaces.ids().await?);
        ids.sort();
        ids.dedup();
        Ok(ids)
    }

    /// Takes away networks that no record owns. A failure is logged, and keeps no other from it.
    pub async fn sweep(&self, ids: &[String]) {
        for id in ids {
            tracing::info!(sandbox = %id, "removing a network that no record owns");
            let path = self.namespaces.noted(id);
            if let Err(error) = self.teardown(id, &PodSandboxConfig::default(), &path).await {
                tracing::warn!(
                    sandbox = %id, "cannot remove a network that no record owns: {}",
                    crate::error::chain(&error)
                );
            }
        }
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

/// What the VMM calls the n-th device.
fn device_id(device: usize) -> String {
    format!("eth{device}")
}

/// A hardware address of the guest's n-th device, locally administered, from the pod's id. Only the
/// agent goes by it: on the wire the interface has the CNI interface's address.
fn device_mac(sandbox_id: &str, device: usize) -> String {
    let digits: String = sandbox_id
        .chars()
        .filter(char::is_ascii_hexdigit)
        .take(8)
        .collect();
    let number = u32::from_str_radix(&digits, 16).unwrap_or(1);
    let [a, b, c, d] = number.to_be_bytes();
    format!("02:{device:02x}:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
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

#[cfg(test)]
mod tests;
