//! CNI as a runtime must speak it (spec 1.1): the chain of plugins for ADD, the reverse chain for
//! DEL with what ADD ran with, CHECK and GC after a restart, and whether a network can be made at
//! all (STATUS). Not here: namespaces and taps, and what the guest is configured with.

mod bandwidth;
mod cache;
mod children;
mod conf;
mod exec;
mod result;
mod versions;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use bulkhead_proto::cri::{PodSandboxConfig, Protocol};
pub use conf::{NetworkConf, PluginConf};
pub use exec::Attachment;
pub use result::{CniDns, CniResult};
use serde_json::{Map, Value, json};
use tokio::sync::RwLock;

use super::NetworkError;
use crate::task::blocking;
use cache::{Cache, Cached};

/// The interface a pod has, by the kubelet's and the plugins' convention.
pub const POD_INTERFACE: &str = "eth0";

/// The capability by which containerd gives a pod's annotations.
const POD_ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";
/// STATUS is asked for with every CRI Status, and GC holds up every ADD: neither gets as long as ADD.
const SHORT_LIMIT: Duration = Duration::from_secs(20);

/// How long GC waits for pods that are being added; others wait behind it.
const COLLECTING_WAIT: Duration = Duration::from_secs(1);

/// The CNI side of pods' networks.
#[derive(Debug)]
pub struct Cni {
    conf_dir: PathBuf,
    bin_dirs: Vec<PathBuf>,
    limit: Duration,
    cache: Cache,
    /// Written by GC: a pod that is being added meanwhile would be taken for garbage.
    collecting: RwLock<()>,
}

impl Cni {
    /// Reads configuration from `conf_dir`, runs programs of `bin_dirs` for at most `limit` each,
    /// keeps the results in `state`.
    #[must_use]
    pub fn new(conf_dir: PathBuf, bin_dirs: Vec<PathBuf>, limit: Duration, state: PathBuf) -> Self {
        Self {
            conf_dir,
            bin_dirs,
            limit,
            cache: Cache::new(state),
            collecting: RwLock::default(),
        }
    }

    /// The configuration in force, with all its programs there.
    ///
    /// # Errors
    /// What is missing.
    pub async fn conf(&self) -> Result<NetworkConf, NetworkError> {
        let (dir, dirs) = (self.conf_dir.clone(), self.bin_dirs.clone());
        blocking(move || usable(&dir, &dirs)).await
    }

    /// Whether pods can be added now, by what the plugins say themselves where they can (STATUS).
    ///
    /// # Errors
    /// What is missing, or the first plugin's word.
    pub async fn status(&self) -> Result<(), NetworkError> {
        let conf = self.conf().await?;
        if !versions::at_least(&conf.version, versions::WITH_STATUS) {
            return Ok(());
        }
        for plugin in &conf.plugins {
            let input = configuration(&conf, plugin, &Map::new(), None);
            self.run_shortly(&plugin.kind, "STATUS", &input).await?;
        }
        Ok(())
    }

    /// Has the plugins free what is of no pod of `valid` (GC), if they can, and are to. No pod is added
    /// from before `valid` is asked to the end.
    ///
    /// # Errors
    /// Those of the configuration; that of the first plugin that failed, when all have run.
    pub async fn collect(
        &self,
        valid: impl FnOnce() -> Vec<String> + Send,
    ) -> Result<(), NetworkError> {
        let alone = tokio::time::timeout(COLLECTING_WAIT, self.collecting.write());
        let Ok(_alone) = alone.await else {
            // An ADD may wait for a pod that has to be added first: it is not to wait for this.
            tracing::info!("CNI's garbage is left for the next start: pods are being added");
            return Ok(());
        };
        let conf = self.conf().await?;
        if conf.disable_gc || !versions::at_least(&conf.version, versions::WITH_STATUS) {
            return Ok(());
        }
        let mut attachments = Vec::new();
        for id in valid() {
            let cached = self.cache.get(&id).await?;
            if cached.is_some_and(|cached| cached.name == conf.name) {
                attachments.push(json!({"containerID": id, "ifname": POD_INTERFACE}));
            }
        }
        let mut failed = None;
        for plugin in &conf.plugins {
            let mut input = configuration(&conf, plugin, &Map::new(), None);
            // The second is what the specification called it once.
            for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
                input.insert(key.to_owned(), attachments.clone().into());
            }
            if let Err(error) = self.run_shortly(&plugin.kind, "GC", &input).await {
                failed.get_or_insert(error);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Whether a pod's network is still as ADD left it (CHECK), if the plugins can say, and are to. A pod
    /// that was never added is fine.
    ///
    /// # Errors
    /// The first plugin's word.
    pub async fn check(&self, attachment: Attachment) -> Result<(), NetworkError> {
        let Some(cached) = self.cache.get(&attachment.container_id).await? else {
            return Ok(());
        };
        let conf = cached.conf()?;
        if cached.result.is_none()
            || conf.disable_check
            || !versions::at_least(&conf.version, versions::WITH_CHECK)
        {
            return Ok(());
        }
        for plugin in &conf.plugins {
            let input = configuration(&conf, plugin, &cached.arguments, cached.result.as_ref());
            self.run(&plugin.kind, "CHECK", &attachment, &input).await?;
        }
        Ok(())
    }

    /// Adds a pod to the network. On failure the plugins have been run to undo it.
    ///
    /// # Errors
    /// Those of the configuration and of the plugin that failed.
    pub async fn add(
        &self,
        attachment: Attachment,
        pod: &PodSandboxConfig,
    ) -> Result<CniResult, NetworkError> {
        let _not_collecting = self.collecting.read().await;
        let conf = self.conf().await?;
        let mut cached = Cached::new(&conf, &attachment, arguments(pod)?);
        // Kept before the first plugin runs: a DEL after a crash must know what there was to undo.
        self.cache.put(&attachment.container_id, &cached).await?;
        match self.chain(&conf, &cached, &attachment).await {
            Ok((raw, result)) => {
                cached.result = Some(raw);
                self.cache.put(&attachment.container_id, &cached).await?;
                Ok(result)
            }
            Err(error) => {
                if let Err(undo) = self.del(attachment).await {
                    tracing::warn!(error = %undo, "cannot undo a failed CNI ADD");
                }
                Err(error)
            }
        }
    }

    async fn chain(
        &self,
        conf: &NetworkConf,
        cached: &Cached,
        attachment: &Attachment,
    ) -> Result<(Value, CniResult), NetworkError> {
        let mut previous = None;
        let mut last = "";
        for plugin in &conf.plugins {
            let input = configuration(conf, plugin, &cached.arguments, previous.as_ref());
            let answer = self.run(&plugin.kind, "ADD", attachment, &input).await?;
            previous = answer.map(|answer| stamped(answer, conf)).or(previous);
            last = &plugin.kind;
        }
        let unusable = |what| NetworkError::PluginOutput {
            plugin: last.to_owned(),
            verb: "ADD",
            what,
        };
        let raw = previous.ok_or_else(|| unusable("it printed nothing".to_owned()))?;
        let result = CniResult::parse(&raw).map_err(unusable)?;
        Ok((raw, result))
    }

    /// Takes a pod out of its network, with the configuration it was added by. Repeatable: a pod
    /// that was never added, or is out already, is fine.
    ///
    /// # Errors
    /// That of the first plugin that failed; the others have still run, and what was kept
    /// for the pod stays, so that the call can be repeated.
    pub async fn del(&self, attachment: Attachment) -> Result<(), NetworkError> {
        let Some(cached) = self.cache.get(&attachment.container_id).await? else {
            return Ok(());
        };
        let conf = cached.conf()?;
        let mut failed = None;
        let result = match versions::at_least(&conf.version, versions::WITH_CHECK) {
            true => cached.result.as_ref(),
            false => None,
        };
        for plugin in conf.plugins.iter().rev() {
            let input = configuration(&conf, plugin, &cached.arguments, result);
            if let Err(error) = self.run(&plugin.kind, "DEL", &attachment, &input).await {
                failed.get_or_insert(error);
            }
        }
        match failed {
            Some(error) => Err(error),
            None => self.cache.remove(&attachment.container_id).await,
        }
    }

    /// The pods something is kept for.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub async fn known(&self) -> Result<Vec<String>, NetworkError> {
        self.cache.ids().await
    }

    async fn run(
        &self,
        plugin: &str,
        verb: &'static str,
        attachment: &Attachment,
        input: &Map<String, Value>,
    ) -> Result<Option<Value>, NetworkError> {
        exec::run(plugin, &self.bin_dirs, verb, attachment, input, self.limit).await
    }

    /// For no pod in particular.
    async fn run_shortly(
        &self,
        plugin: &str,
        verb: &'static str,
        input: &Map<String, Value>,
    ) -> Result<(), NetworkError> {
        let limit = self.limit.min(SHORT_LIMIT);
        let nobody = Attachment::default();
        exec::run(plugin, &self.bin_dirs, verb, &nobody, input, limit).await?;
        Ok(())
    }
}

/// A result that does not say its version has the configuration's.
fn stamped(mut answer: Value, conf: &NetworkConf) -> Value {
    if let Some(object) = answer.as_object_mut() {
        let version = object.get("cniVersion").and_then(Value::as_str);
        if version.is_none_or(str::is_empty) {
            object.insert("cniVersion".to_owned(), conf.version.clone().into());
        }
    }
    answer
}

/// The configuration of a directory, if all its programs are there. Blocks (small files).
fn usable(dir: &Path, dirs: &[PathBuf]) -> Result<NetworkConf, NetworkError> {
    let conf = conf::load(dir)?;
    for plugin in &conf.plugins {
        exec::find(&plugin.kind, dirs)?;
    }
    Ok(conf)
}

/// Checks what a pod asks of the plugins.
///
/// # Errors
/// For a bandwidth that is not a quantity.
pub fn validate(pod: &PodSandboxConfig) -> Result<(), NetworkError> {
    arguments(pod).map(|_| ())
}

/// `CNI_ARGS` as the plugins of Kubernetes networks expect it.
#[must_use]
pub fn kubernetes_args(sandbox_id: &str, pod: &PodSandboxConfig) -> String {
    let metadata = pod.metadata.clone().unwrap_or_default();
    // A `;` in a value would end it; Kubernetes allows none in these.
    let clean = |text: &str| text.replace([';', '='], "_");
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
        clean(&metadata.namespace),
        clean(&metadata.name),
        sandbox_id,
        clean(&metadata.uid)
    )
}

/// Capability arguments (CNI conventions): each is given to the plugins that declare it.
fn arguments(pod: &PodSandboxConfig) -> Result<Map<String, Value>, NetworkError> {
    let mut arguments = Map::new();
    if let Some(rates) = bandwidth::argument(&pod.annotations)? {
        arguments.insert("bandwidth".to_owned(), rates);
    }
    let ports: Vec<Value> = pod
        .port_mappings
        .iter()
        .filter(|mapping| mapping.host_port > 0)
        .map(|mapping| {
            let protocol = match mapping.protocol() {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
                Protocol::Sctp => "sctp",
            };
            json!({
                "hostPort": mapping.host_port,
                "containerPort": mapping.container_port,
                "protocol": protocol,
                "hostIP": mapping.host_ip,
            })
        })
        .collect();
    if !ports.is_empty() {
        arguments.insert("portMappings".to_owned(), Value::Array(ports));
    }
    arguments.insert(POD_ANNOTATIONS.to_owned(), json!(pod.annotations));
    let cgroup = pod.linux.as_ref().map_or("", |linux| &linux.cgroup_parent);
    if !cgroup.is_empty() {
        arguments.insert("cgroupPath".to_owned(), cgroup.into());
    }
    if let Some(dns) = &pod.dns_config {
        arguments.insert(
            "dns".to_owned(),
            json!({"servers": dns.servers, "searches": dns.searches, "options": dns.options}),
        );
    }
    Ok(arguments)
}

/// What a plugin reads: its own object with what the runtime adds (spec 1.1, "Deriving execution
/// configuration from plugin configuration").
fn configuration(
    conf: &NetworkConf,
    plugin: &PluginConf,
    arguments: &Map<String, Value>,
    previous: Option<&Value>,
) -> Map<String, Value> {
    let mut input = plugin.object.clone();
    input.remove("capabilities");
    input.insert("name".to_owned(), conf.name.clone().into());
    input.insert("cniVersion".to_owned(), conf.version.clone().into());
    let supported: Map<String, Value> = arguments
        .iter()
        .filter(|(name, _)| plugin.has_capability(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if !supported.is_empty() {
        input.insert("runtimeConfig".to_owned(), Value::Object(supported));
    }
    if let Some(previous) = previous {
        input.insert("prevResult".to_owned(), previous.clone());
    }
    input
}

#[cfg(test)]
mod tests;
