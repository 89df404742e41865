//! etcd, API server, controller manager and scheduler, and the registry that nodes pull from.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Child,
    time::Duration,
};

use tokio::time::Instant;

use super::{MACHINE, certificates::Certificates, cluster::Kubectl, directory, part::Part};
use crate::{Failure, host};

/// The API server is up after some ten seconds on an idle machine.
const START: Duration = Duration::from_secs(180);

/// The running control plane; it ends when this is dropped.
#[derive(Debug)]
pub struct ControlPlane {
    parts: Vec<Part>,
    registry: Child,
}

impl ControlPlane {
    /// Starts all of it, with its logs and etcd's data in `dir`.
    ///
    /// # Errors
    /// Which part did not come up, with the end of its log.
    pub async fn start(
        dir: &Path,
        made: &Certificates,
        kubectl: &Kubectl,
    ) -> Result<Self, Failure> {
        let tools = directory("BULKHEAD_KUBE_TOOLS")?;
        let storage = directory("BULKHEAD_KUBE_REGISTRY")?.display().to_string();
        let registry = host::registry(dir, "127.0.0.1:5000", &storage, "");
        let mut plane = Self {
            registry: registry.await?,
            parts: Vec::new(),
        };
        let part = |name: &str, args: Vec<String>| Part::start(dir, name, &tools.join(name), &args);
        let data = format!("--data-dir={}", dir.join("etcd").display());
        // What is in it is not needed after the run.
        plane
            .parts
            .push(part("etcd", strings(&["--unsafe-no-fsync", &data]))?);
        let mut api = part("kube-apiserver", api_server(dir, made)?)?;
        let ready = async || kubectl.run(&["get", "--raw", "/readyz"]).await.is_ok();
        let up = api
            .wait("the API server", Instant::now() + START, ready)
            .await;
        if let Err(error) = up {
            let etcd = super::part::tail(&dir.join("etcd.log"));
            return Err(format!("{error}etcd says:\n{etcd}").into());
        }
        plane.parts.push(api);
        let own = |client: &str| {
            let file = made.kubeconfig(client);
            [
                "kubeconfig",
                "authentication-kubeconfig",
                "authorization-kubeconfig",
            ]
            .map(|flag| format!("--{flag}={file}"))
            .to_vec()
        };
        let mut manager = own("controller-manager");
        manager.extend([
            "--leader-elect=false".to_owned(),
            "--use-service-account-credentials=true".to_owned(),
            format!("--root-ca-file={}", made.file("ca.crt")),
            format!(
                "--service-account-private-key-file={}",
                made.file("service-accounts.key")
            ),
            // A busy emulated node is not a lost one.
            "--node-monitor-grace-period=10m".to_owned(),
        ]);
        plane.parts.push(part("kube-controller-manager", manager)?);
        let mut scheduler = own("scheduler");
        scheduler.push("--leader-elect=false".to_owned());
        plane.parts.push(part("kube-scheduler", scheduler)?);
        Ok(plane)
    }

    /// Fails if a part has ended by itself.
    ///
    /// # Errors
    /// Which.
    pub fn alive(&mut self) -> Result<(), Failure> {
        for part in &mut self.parts {
            if let Some(status) = part.ended()? {
                return Err(format!("{part:?} ended with {status}").into());
            }
        }
        Ok(())
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        // Already gone is fine.
        let _ = (self.registry.kill(), self.registry.wait());
    }
}

fn api_server(dir: &Path, made: &Certificates) -> Result<Vec<String>, Failure> {
    let certificates: PathBuf = dir.join("api-server");
    fs::create_dir_all(&certificates)?;
    let mut args = strings(&[
        "--etcd-servers=http://127.0.0.1:2379",
        // On the loopback alone there would be no service `kubernetes` for pods.
        "--bind-address=0.0.0.0",
        "--authorization-mode=Node,RBAC",
        "--allow-privileged=true",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        // Where a node is reached: the name is no address here.
        "--kubelet-preferred-address-types=InternalIP",
    ]);
    args.push(format!("--advertise-address={MACHINE}"));
    for (flag, file) in [
        ("client-ca-file", "ca.crt"),
        ("tls-cert-file", "server.crt"),
        ("tls-private-key-file", "server.key"),
        ("kubelet-client-certificate", "admin.crt"),
        ("kubelet-client-key", "admin.key"),
        ("service-account-key-file", "service-accounts.key"),
        ("service-account-signing-key-file", "service-accounts.key"),
    ] {
        args.push(format!("--{flag}={}", made.file(file)));
    }
    args.push(format!("--cert-dir={}", certificates.display()));
    Ok(args)
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}
