//! The node's side, in the test host: its address, the daemon, a kubelet. It runs until the host is ended;
//! what is asked of it meanwhile is asked by files in the directory both sides see.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use tokio::time::Instant;

use super::{CLUSTER_DNS, REGISTRY, VOLUMES, directory, part::Part};
use crate::{
    Failure, Outcome,
    conformance::MIRRORED,
    host::{Host, Options},
    waiting::pause,
};

/// A file of this name asks for a kill and a new start of daemon and kubelet. It goes when that is done.
pub const RESTART: &str = "restart";

/// What a node is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: String,
    /// The directory of files that both sides see.
    pub dir: PathBuf,
    /// Where the cluster's certificates are.
    pub certificates: PathBuf,
}

/// Brings the node up and keeps it so.
///
/// # Errors
/// If a part does not start, or ends by itself.
pub async fn run(settings: &Settings) -> Outcome {
    network(&settings.address).await?;
    let root = PathBuf::from("/var/lib/bulkhead/kubelet");
    for number in 1..=4 {
        fs::create_dir_all(format!("{VOLUMES}/{number}"))?;
    }
    fs::create_dir_all(&root)?;
    let options = Options {
        sections: "[cgroup]\ndriver = \"cgroupfs\"\n[host]\nallow_io_uring = true\n".to_owned(),
        ..Options::default()
    };
    let mut host = Host::start(&settings.name, &settings.dir, options).await?;
    mirrors(&host)?;
    let config = kubelet_configuration(settings, &host)?;
    let start = || kubelet(settings, &config, &root);
    let mut kubelet = start()?;
    let asked = settings.dir.join(RESTART);
    loop {
        if asked.exists() {
            kubelet.kill().await?;
            host.kill_daemon()?;
            host.start_daemon().await?;
            kubelet = start()?;
            fs::remove_file(&asked)?;
        }
        if let Some(status) = kubelet.ended()? {
            return Err(format!("the kubelet ended with {status}").into());
        }
        pause(Instant::now() + Duration::from_secs(60), "nothing").await?;
    }
}

fn kubelet(settings: &Settings, config: &Path, root: &Path) -> Result<Part, Failure> {
    let program = directory("BULKHEAD_KUBE_NODE")?.join("kubelet");
    let kubeconfig = settings
        .certificates
        .join(format!("{}.kubeconfig", settings.name));
    let args = [
        format!("--config={}", config.display()),
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--hostname-override={}", settings.name),
        format!("--node-ip={}", settings.address),
        format!("--root-dir={}", root.display()),
        format!("--cert-dir={}", root.join("pki").display()),
    ];
    Part::start(&settings.dir, "kubelet", &program, &args)
}

/// The card that the machine's side knows by this address, and the way out.
async fn network(address: &str) -> Outcome {
    // On a machine's own kernel it may be built in, or not needed.
    let _ = Command::new("modprobe").arg("virtio_net").status()?;
    let card = || -> Option<String> {
        let cards = fs::read_dir("/sys/class/net").ok()?;
        let mut names = cards.filter_map(|card| card.ok()?.file_name().into_string().ok());
        names.find(|name| name.starts_with("eth") || name.starts_with("en"))
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    let card = loop {
        match card() {
            Some(card) => break card,
            None => pause(deadline, "the network card").await?,
        }
    };
    let subnet = format!("{address}/24");
    for args in [
        vec!["address", "add", &subnet, "dev", &card],
        vec!["link", "set", &card, "up"],
        vec!["route", "add", "default", "via", super::MACHINE],
    ] {
        let done = Command::new("ip").args(&args).status()?;
        if !done.success() {
            return Err(format!("ip {} failed", args.join(" ")).into());
        }
    }
    Ok(())
}

/// The registry on the machine stands for those that images are named after.
fn mirrors(host: &Host) -> Outcome {
    for registry in MIRRORED.into_iter().chain([REGISTRY]) {
        let dir = host.certs_dir().join(registry);
        fs::create_dir_all(&dir)?;
        let text = if registry == REGISTRY {
            format!("server = \"http://{REGISTRY}\"\n[host.\"http://{REGISTRY}\"]\n")
        } else {
            let mirror = format!("http://{REGISTRY}/v2/{registry}");
            format!(
                "server = \"{mirror}\"\noverride_path = true\n[host.\"{mirror}\"]\noverride_path = true\n"
            )
        };
        fs::write(dir.join("hosts.toml"), text)?;
    }
    Ok(())
}

fn kubelet_configuration(settings: &Settings, host: &Host) -> Result<PathBuf, Failure> {
    let resolver = settings.dir.join("resolv.conf");
    fs::write(&resolver, "nameserver 10.0.2.3\n")?;
    let text = format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
         authentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: true}}, x509: {{clientCAFile: {}}}}}\n\
         authorization: {{mode: Webhook}}\n\
         cgroupDriver: cgroupfs\nfailSwapOn: false\nresolvConf: {}\n\
         containerRuntimeEndpoint: unix://{}\n\
         clusterDNS: [{CLUSTER_DNS}]\nclusterDomain: cluster.local\n\
         serializeImagePulls: false\nmaxParallelImagePulls: 3\n\
         syncFrequency: 10s\nnodeStatusReportFrequency: 1m\n\
         runtimeRequestTimeout: 10m\nregistryPullQPS: 0\neventRecordQPS: 0\n\
         imageGCHighThresholdPercent: 100\nimageGCLowThresholdPercent: 99\n\
         evictionHard: {{memory.available: 50Mi, nodefs.available: 1%, imagefs.available: 1%}}\n\
         featureGates: {{InPlacePodVerticalScalingMemoryBackedVolumes: true}}\n",
        settings.certificates.join("ca.crt").display(),
        resolver.display(),
        host.socket().display(),
    );
    let file = settings.dir.join("kubelet.yaml");
    fs::write(&file, text)?;
    Ok(file)
}
