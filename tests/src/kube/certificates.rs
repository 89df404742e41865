//! The cluster's certificates: one authority, and by it who may say what to whom. Made by openssl.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::process::Command;

use super::{API_PORT, MACHINE};
use crate::Failure;

/// The names of the API server: on the machine, for the node, and in pods.
const SERVER_NAMES: &str = "subjectAltName=IP:10.0.2.2,IP:127.0.0.1,IP:10.96.0.1,DNS:localhost,\
    DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local";

/// A directory of keys and certificates: `NAME.key`, `NAME.crt`.
#[derive(Debug, Clone)]
pub struct Certificates {
    dir: PathBuf,
}

impl Certificates {
    /// The authority, the API server and who talks to it, and the key for service accounts' tokens.
    ///
    /// # Errors
    /// What openssl says.
    pub async fn make(dir: &Path, nodes: &[String]) -> Result<Self, Failure> {
        fs::create_dir_all(dir)?;
        let made = Self {
            dir: dir.to_owned(),
        };
        made.certificate("ca", "/CN=test-authority", &[]).await?;
        made.certificate("server", "/CN=kube-apiserver", &["-addext", SERVER_NAMES])
            .await?;
        let clients = [
            ("admin", "/O=system:masters/CN=admin"),
            ("controller-manager", "/CN=system:kube-controller-manager"),
            ("scheduler", "/CN=system:kube-scheduler"),
            ("proxy", "/CN=system:kube-proxy"),
        ];
        for (name, subject) in clients {
            made.client(name, subject).await?;
        }
        for node in nodes {
            let subject = format!("/O=system:nodes/CN=system:node:{node}");
            made.client(node, &subject).await?;
        }
        made.openssl(&["genrsa", "-out", "service-accounts.key", "2048"])
            .await?;
        Ok(made)
    }

    /// The path of a file of these.
    #[must_use]
    pub fn file(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// The kubeconfig of a client.
    #[must_use]
    pub fn kubeconfig(&self, client: &str) -> String {
        self.file(&format!("{client}.kubeconfig"))
    }

    async fn client(&self, name: &str, subject: &str) -> Result<(), Failure> {
        self.certificate(name, subject, &[]).await?;
        let file = |kind: &str| self.file(&format!("{name}.{kind}"));
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters: [{{name: test, cluster: {{server: \"https://{MACHINE}:{API_PORT}\", certificate-authority: {}}}}}]\n\
             users: [{{name: {name}, user: {{client-certificate: {}, client-key: {}}}}}]\n\
             contexts: [{{name: test, context: {{cluster: test, user: {name}}}}}]\n",
            self.file("ca.crt"),
            file("crt"),
            file("key"),
        );
        Ok(fs::write(self.kubeconfig(name), text)?)
    }

    async fn certificate(&self, name: &str, subject: &str, more: &[&str]) -> Result<(), Failure> {
        let (key, certificate) = (format!("{name}.key"), format!("{name}.crt"));
        let mut args = vec![
            "req",
            "-x509",
            "-nodes",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-days",
            "2",
            "-subj",
            subject,
            "-keyout",
            &key,
            "-out",
            &certificate,
        ];
        if name != "ca" {
            args.extend(["-CA", "ca.crt", "-CAkey", "ca.key"]);
            args.extend(["-addext", "basicConstraints=critical,CA:FALSE"]);
        }
        args.extend(more);
        self.openssl(&args).await
    }

    async fn openssl(&self, args: &[&str]) -> Result<(), Failure> {
        let done = Command::new("openssl")
            .args(args)
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .output()
            .await?;
        if done.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&done.stderr);
        Err(format!("openssl {} failed: {said}", args.join(" ")).into())
    }
}
