//! A node for the tests: a real registry over the prepared storage, a CNI configuration, and the
//! daemon under test, which a test may stop, kill and start again.

use std::{
    env,
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tokio::time::Instant;

use crate::{
    Failure, Outcome,
    cri::{Cri, PATIENCE, pause},
};

/// Where the registry listens; in the test host nobody else does.
pub const REGISTRY: &str = "127.0.0.1:5000";

/// A registry, a network and a daemon.
#[derive(Debug)]
pub struct Host {
    dir: PathBuf,
    bin: PathBuf,
    name: String,
    registry: Option<Child>,
    daemon: Option<Child>,
    state: PathBuf,
}

/// What differs from the usual node.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Lines that go before everything else in `[vmm]`.
    pub vmm: String,
    /// Further sections of the configuration.
    pub sections: String,
    /// In place of the bridge network's configuration; empty text means no file.
    pub cni: Option<String>,
    /// Where the state is, if not in the node's own directory.
    pub state_dir: Option<PathBuf>,
}

impl Host {
    /// Prepares the node `name` below `results` and starts its daemon. Programs come from
    /// `BULKHEAD_BIN_DIR`.
    ///
    /// # Errors
    /// If a part is missing or the daemon does not come up.
    pub async fn start(name: &str, results: &Path, options: Options) -> Result<Self, Failure> {
        let bin = env::var_os("BULKHEAD_BIN_DIR").map(PathBuf::from);
        let bin = bin.ok_or("BULKHEAD_BIN_DIR names no directory: run the tests by `make test`")?;
        for part in [
            "bulkhead",
            "bulkhead-vmm",
            "bulkhead-agent",
            "vmlinux",
            "initramfs.cpio",
        ] {
            let path = bin.join(part);
            if !path.exists() {
                return Err(
                    format!("{} is missing: `packaging/build.sh fast`", path.display()).into(),
                );
            }
        }
        let dir = results.join(name);
        fs::create_dir_all(dir.join("cni"))?;
        let mut host = Self {
            dir,
            bin,
            name: name.to_owned(),
            registry: None,
            daemon: None,
            state: PathBuf::new(),
        };
        host.write_config(&options)?;
        host.start_daemon().await?;
        Ok(host)
    }

    fn write_config(&mut self, options: &Options) -> Outcome {
        let conf = options.cni.clone().unwrap_or_else(|| self.bridge_network());
        if !conf.is_empty() {
            fs::write(self.dir.join("cni/10-test.conflist"), conf)?;
        }
        let bin = self.bin.display();
        let state = options
            .state_dir
            .clone()
            .unwrap_or_else(|| self.default_state_dir());
        self.state.clone_from(&state);
        let vmm_keys = ["binary", "kernel", "initramfs"].map(|key| {
            let file = match key {
                "binary" => "bulkhead-vmm",
                "kernel" => "vmlinux",
                _ => "initramfs.cpio",
            };
            // A key the test sets itself is not given twice.
            let own = format!("{key} = ");
            if options.vmm.lines().any(|line| line.starts_with(&own)) {
                String::new()
            } else {
                format!("{key} = \"{bin}/{file}\"\n")
            }
        });
        let sections = if options.sections.contains("[sandbox]") {
            options.sections.clone()
        } else {
            // The test host has one processor; a pod may ask for two all the same.
            format!("[sandbox]\nmax_vcpus = 2\n{}", options.sections)
        };
        let agent = format!("[host]\nagent = \"{bin}/bulkhead-agent\"\n");
        let sections = if sections.contains("[host]\n") {
            sections.replace("[host]\n", &agent)
        } else {
            format!("{agent}{sections}")
        };
        let text = format!(
            "[paths]\nstate_dir = \"{}\"\nrun_dir = \"{}\"\n[vmm]\n{}{}\n[network]\n\
             cni_conf_dir = \"{}\"\ncni_bin_dirs = [\"/usr/lib/cni\", \"{}\"]\n\
             [registry]\nconfig_dir = \"{}\"\n[volumes]\nsockets = [\"{}\"]\n{}\n",
            state.display(),
            self.run_dir().display(),
            options.vmm,
            vmm_keys.concat(),
            self.dir.join("cni").display(),
            self.dir.join("plugins").display(),
            self.certs_dir().display(),
            self.test_socket().display(),
            sections,
        );
        fs::write(self.dir.join("config.toml"), text)?;
        Ok(())
    }

    fn default_state_dir(&self) -> PathBuf {
        Path::new("/var/lib/bulkhead").join(&self.name)
    }

    /// The node's number, so that two nodes' networks differ.
    fn number(&self) -> u8 {
        self.name
            .bytes()
            .fold(7_u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte))
            | 1
    }

    fn bridge_network(&self) -> String {
        format!(
            r#"{{"cniVersion": "1.0.0", "name": "{name}", "plugins": [
            {{"type": "bridge", "bridge": "{bridge}", "isGateway": true, "ipMasq": true, "hairpinMode": true,
              "mtu": 1400, "ipam": {{"type": "host-local", "dataDir": "{leases}",
              "ranges": [[{{"subnet": "10.{n}.0.0/16"}}], [{{"subnet": "fd00:{n}::/64"}}]],
              "routes": [{{"dst": "0.0.0.0/0"}}, {{"dst": "::/0"}}]}}}},
            {{"type": "portmap", "capabilities": {{"portMappings": true}}}}]}}"#,
            name = self.name,
            bridge = self.bridge(),
            leases = self.dir.join("ipam").display(),
            n = self.number(),
        )
    }

    /// The bridge of the node's pods.
    #[must_use]
    pub fn bridge(&self) -> String {
        format!("bh{}", self.number())
    }

    /// The node's address on that bridge.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.number(), 0, 1)
    }

    /// Where host-local keeps its leases.
    #[must_use]
    pub fn leases(&self) -> PathBuf {
        self.dir.join("ipam").join(&self.name)
    }

    /// `paths.run_dir`.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        Path::new("/run").join(&self.name)
    }

    /// `paths.state_dir`.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.state.clone()
    }

    /// `registry.config_dir`.
    #[must_use]
    pub fn certs_dir(&self) -> PathBuf {
        self.dir.join("certs.d")
    }

    /// A directory of the node's own, for a test's files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A socket that pods may reach (`volumes.sockets`).
    #[must_use]
    pub fn test_socket(&self) -> PathBuf {
        self.run_dir().join("test.sock")
    }

    /// The CRI socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run_dir().join("bulkhead.sock")
    }

    /// The daemon's log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.join("daemon.log")
    }

    /// The `bulkhead` program.
    #[must_use]
    pub fn bulkhead(&self) -> PathBuf {
        self.bin.join("bulkhead")
    }

    /// The configuration file.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.dir.join("config.toml")
    }

    /// The daemon's process id, while it runs.
    #[must_use]
    pub fn daemon_pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
    }

    /// Starts the daemon and waits for its socket.
    ///
    /// # Errors
    /// What it said, if it does not come up.
    pub async fn start_daemon(&mut self) -> Outcome {
        let log = File::options().create(true).append(true).open(self.log())?;
        let child = Command::new(self.bulkhead())
            .args(["serve", "--config"])
            .arg(self.config_file())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let daemon = self.daemon.insert(child);
        let deadline = Instant::now() + PATIENCE;
        let socket = Path::new("/run").join(&self.name).join("bulkhead.sock");
        while Cri::connect(&socket).await.is_err() {
            if let Some(status) = daemon.try_wait()? {
                let log = fs::read_to_string(self.dir.join("daemon.log"))?;
                return Err(format!("the daemon ended at its start, {status}: {log}").into());
            }
            pause(deadline, "the daemon's socket").await?;
        }
        Ok(())
    }

    /// A client of the daemon.
    ///
    /// # Errors
    /// If it does not listen.
    pub async fn cri(&self) -> Result<Cri, Failure> {
        Cri::connect(&self.socket()).await
    }

    /// Kills the daemon as a crash would.
    ///
    /// # Errors
    /// If it did not run.
    pub fn kill_daemon(&mut self) -> Outcome {
        let mut child = self.daemon.take().ok_or("the daemon does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Ends the daemon by SIGTERM and waits for it.
    ///
    /// # Errors
    /// If it does not end well.
    pub async fn stop_daemon(&mut self) -> Outcome {
        let Some(mut child) = self.daemon.take() else {
            return Ok(());
        };
        Command::new("kill").arg(child.id().to_string()).status()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(format!("the daemon ended with {status}").into()),
                None => {
                    if let Err(late) = pause(deadline, "the daemon to end").await {
                        child.kill()?;
                        child.wait()?;
                        return Err(late);
                    }
                }
            }
        }
    }

    /// Starts the registry over the storage named by `BULKHEAD_REGISTRY`.
    ///
    /// # Errors
    /// If it does not come up.
    pub async fn start_registry(&mut self) -> Outcome {
        let storage = env::var("BULKHEAD_REGISTRY")
            .map_err(|_| "BULKHEAD_REGISTRY names no storage: run the tests by `make test`")?;
        self.registry = Some(registry(&self.dir, REGISTRY, &storage, "").await?);
        Ok(())
    }
}

/// Starts a docker-registry over `storage`; `more` goes to its configuration.
///
/// # Errors
/// If it does not come up.
pub async fn registry(
    dir: &Path,
    address: &str,
    storage: &str,
    more: &str,
) -> Result<Child, Failure> {
    let port = address.rsplit(':').next().unwrap_or(address);
    let config = dir.join(format!("registry-{port}.yml"));
    let text = format!(
        "version: 0.1\nlog: {{level: warn}}\nstorage:\n  filesystem: {{rootdirectory: {storage}}}\n\
         \x20 maintenance:\n    readonly: {{enabled: true}}\nhttp: {{addr: {address}}}\n{more}"
    );
    fs::write(&config, text)?;
    let log = File::create(dir.join(format!("registry-{port}.log")))?;
    let child = Command::new("docker-registry")
        .arg("serve")
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    let at: SocketAddr = address.parse()?;
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(at).is_err() {
        pause(deadline, "the registry").await?;
    }
    Ok(child)
}

impl Drop for Host {
    fn drop(&mut self) {
        for child in [&mut self.daemon, &mut self.registry].into_iter().flatten() {
            // Already gone is fine: nothing may outlive the tests.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
