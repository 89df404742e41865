//! A daemon (the real program) with directories and a cgroup of its own and the fake VMM.

#![allow(dead_code)] // Each test file uses its part.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use bulkhead_proto::cri::{
    self as v1, image_service_client::ImageServiceClient,
    runtime_service_client::RuntimeServiceClient,
};
use bulkhead_runtime::config::Config;
use hyper_util::rt::TokioIo;
use tokio::{
    net::UnixStream,
    process::{Child, Command},
};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

/// How long a test waits for what must come or end; the machine may be slow and busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// When a daemon is to die by itself: at which of its writes.
#[derive(Debug, Clone, Copy)]
pub enum Death {
    Never,
    Before(u64),
    At(u64),
}

/// Where a test finds what an ended daemon has left.
pub struct Left {
    pub log: PathBuf,
    pub database: PathBuf,
    /// The files themselves, which go with this.
    _dir: tempfile::TempDir,
}

pub struct Daemon {
    pub config: Config,
    pub runtime: RuntimeServiceClient<Channel>,
    pub images: ImageServiceClient<Channel>,
    cgroup: PathBuf,
    cgroup_parent: String,
    running: Option<Child>,
    dir: Option<tempfile::TempDir>,
    file: PathBuf,
}

/// What the machine lacks for these tests.
fn lacking() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root");
    }
    cgroup_root()
        .is_none()
        .then_some("needs a cgroup version 2 hierarchy")
}

fn cgroup_root() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let mut lines = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    let found = lines.find(|fields| fields.get(2) == Some(&"cgroup2"))?;
    Some(PathBuf::from(found[1]))
}

/// `target/PROFILE/examples/fake-vmm`, beside `target/PROFILE/deps/THIS-TEST`.
fn fake_vmm() -> PathBuf {
    let me = std::env::current_exe().unwrap();
    let fake = me
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .join("examples/fake-vmm");
    assert!(
        fake.is_file(),
        "{} is not built: a whole `cargo test -p bulkhead` builds it, or `cargo build -p bulkhead --examples`",
        fake.display()
    );
    fake
}

impl Daemon {
    /// Starts one whose VMMs misbehave as `mode` says; `None`, with a word, where that cannot be.
    pub async fn start(mode: &str) -> Option<Self> {
        Self::start_with(mode, "/proc/self/exe").await
    }

    pub async fn start_with(mode: &str, kernel: &str) -> Option<Self> {
        let mut daemon = Self::prepare(mode, kernel)?;
        daemon.start_daemon().await;
        Some(daemon)
    }

    /// All but the start of it.
    pub fn prepare(mode: &str, kernel: &str) -> Option<Self> {
        if let Some(why) = lacking() {
            println!("skipped: {why}");
            return None;
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = tempfile::Builder::new()
            .prefix("bh")
            .tempdir_in("/tmp")
            .unwrap();
        let base = dir.path().display();
        let file = format!(
            "[paths]\nstate_dir = \"{base}/lib\"\nrun_dir = \"{base}/run\"\n\
             [vmm]\nkvm = \"/dev/null\"\nbinary = {fake:?}\nkernel = {kernel:?}\n\
             initramfs = \"/proc/self/exe\"\ncmdline = {mode:?}\n\
             [sandbox]\nscratch_mib = 64\nstop_timeout_secs = 1\nvolumes = false\n\
             [boot]\ntimeout_secs = 3\n[network]\nmode = \"none\"\n\
             [cgroup]\ndriver = \"cgroupfs\"\nroot = {root:?}\n",
            fake = fake_vmm(),
            root = cgroup_root().unwrap(),
        );
        let config = Config::parse(Path::new("test"), &file).unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, file).unwrap();
        let cgroup_parent = format!("/bulkhead-test-{}-{number}", std::process::id());
        std::fs::create_dir_all(&config.paths.state_dir).unwrap();
        Some(Self {
            cgroup: config.cgroup.root.join(&cgroup_parent[1..]),
            cgroup_parent,
            runtime: RuntimeServiceClient::new(channel(&config.paths.socket)),
            images: ImageServiceClient::new(channel(&config.paths.socket)),
            config,
            running: None,
            dir: Some(dir),
            file: path,
        })
    }

    pub fn clone_client(&self) -> Self {
        Self {
            config: self.config.clone(),
            runtime: self.runtime.clone(),
            images: self.images.clone(),
            cgroup: self.cgroup.clone(),
            cgroup_parent: self.cgroup_parent.clone(),
            running: None,
            dir: None,
            file: self.file.clone(),
        }
    }

    fn command(&self) -> Command {
        let mut log = std::fs::File::options();
        let log = log
            .append(true)
            .create(true)
            .open(self.file.with_extension("log"))
            .unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
        command
            .arg("serve")
            .arg("--config")
            .arg(&self.file)
            .kill_on_drop(true);
        command.args(["--log-level", "debug"]).stderr(log);
        command
    }

    /// What the daemons have logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.file.with_extension("log")).unwrap()
    }

    /// The writes of records that its daemons have made, in order: `NUMBER TABLE: ACTION`.
    pub fn writes(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.file.with_extension("writes"));
        text.unwrap_or_default()
            .lines()
            .map(ToOwned::to_owned)
            .collect()
    }

    /// Starts the daemon and waits until it answers.
    pub async fn start_daemon(&mut self) {
        self.start_daemon_that(Death::Never).await;
        assert!(!self.is_dead(), "{}", self.log());
    }

    /// Starts a daemon that dies by itself, and waits until it answers or is dead.
    pub async fn start_daemon_that(&mut self, death: Death) {
        let mut command = self.command();
        command.env("BULKHEAD_WRITES", self.file.with_extension("writes"));
        match death {
            Death::Never => {}
            Death::Before(number) => {
                command.env("BULKHEAD_DIE_BEFORE", number.to_string());
            }
            Death::At(number) => {
                command.env("BULKHEAD_DIE_AT", number.to_string());
            }
        }
        let mut child = command.spawn().unwrap();
        let end = Instant::now() + PATIENCE;
        loop {
            let channel = channel(&self.config.paths.socket);
            self.runtime = RuntimeServiceClient::new(channel.clone());
            self.images = ImageServiceClient::new(channel);
            let asked = self.runtime.version(v1::VersionRequest::default()).await;
            if asked.is_ok() {
                break;
            }
            if child.try_wait().unwrap().is_some() {
                break;
            }
            assert!(Instant::now() < end, "{asked:?}: {}", self.log());
            tokio::task::yield_now().await;
        }
        self.running = Some(child);
    }

    /// Ends the daemon as a service manager does; pods stay.
    pub async fn stop_daemon(&mut self) {
        let child = self.running.as_mut().unwrap();
        signal(child, rustix::process::Signal::TERM);
        let ended = tokio::time::timeout(PATIENCE, child.wait()).await;
        assert!(ended.expect("the daemon did not end").unwrap().success());
        assert!(!self.config.paths.socket.exists());
    }

    /// Ends the daemon as a bug does.
    pub async fn kill_daemon(&mut self) {
        let child = self.running.as_mut().unwrap();
        signal(child, rustix::process::Signal::KILL);
        child.wait().await.unwrap();
    }

    /// Whether the daemon has ended, by itself or not.
    pub fn is_dead(&mut self) -> bool {
        match &mut self.running {
            Some(child) => child.try_wait().unwrap().is_some(),
            None => true,
        }
    }

    /// Whether the daemon is dead, or is about to be: its connections go before it.
    pub async fn dies(&mut self) -> bool {
        let Some(child) = &mut self.running else {
            return true;
        };
        let soon = Duration::from_secs(10);
        tokio::time::timeout(soon, child.wait()).await.is_ok()
    }

    /// Whether it lives on when it has made no write for a while: it has settled and caught up, as far
    /// as it ever will. (A machine so slow that it does so later makes a test look at less.)
    pub async fn rests(&mut self) -> bool {
        let mut turn = tokio::time::interval(Duration::from_millis(50));
        let mut quiet = 0;
        let mut seen = self.writes().len();
        while quiet < 6 && !self.is_dead() {
            turn.tick().await;
            let now = self.writes().len();
            quiet = if now == seen { quiet + 1 } else { 0 };
            seen = now;
        }
        !self.is_dead()
    }

    /// The id of a container, by its name.
    pub async fn container(&mut self, name: &str) -> Result<String, Status> {
        let request = v1::ListContainersRequest::default();
        let list = self.runtime.list_containers(request).await?.into_inner();
        let named =
            |container: &v1::Container| container.metadata.as_ref().is_some_and(|m| m.name == name);
        let found = list.containers.into_iter().find(named);
        let found = found.ok_or_else(|| Status::not_found(name.to_owned()))?;
        Ok(found.id)
    }

    /// Where the pods' logs are.
    pub fn logs(&self) -> PathBuf {
        self.config.paths.state_dir.with_file_name("logs")
    }

    /// What a second daemon on the same state says.
    pub async fn second(&self) -> String {
        let mut command = self.command();
        let output = command.stderr(std::process::Stdio::piped()).output();
        let output = tokio::time::timeout(PATIENCE, output).await;
        let output = output.expect("the second daemon does not end").unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    }

    pub async fn end(mut self) {
        self.stop_daemon().await;
        if self.cgroup.exists() {
            std::fs::remove_dir(&self.cgroup).unwrap();
        }
    }

    /// Ends it, and sees that no pod has left anything.
    pub async fn end_and_check(mut self) -> Left {
        self.until_nothing_held().await;
        self.stop_daemon().await;
        if self.cgroup.exists() {
            std::fs::remove_dir(&self.cgroup).unwrap();
        }
        let checkpoints = self.config.paths.state_dir.join("logs");
        let left: Vec<_> = std::fs::read_dir(checkpoints)
            .into_iter()
            .flatten()
            .collect();
        assert!(left.is_empty(), "{left:?}");
        Left {
            log: self.logs(),
            database: self.config.paths.database(),
            _dir: self.dir.take().unwrap(),
        }
    }

    pub fn request(&self, name: &str) -> v1::RunPodSandboxRequest {
        let metadata = v1::PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            namespace: "default".to_owned(),
            attempt: 0,
        };
        let linux = v1::LinuxPodSandboxConfig {
            cgroup_parent: self.cgroup_parent.clone(),
            ..Default::default()
        };
        v1::RunPodSandboxRequest {
            config: Some(v1::PodSandboxConfig {
                metadata: Some(metadata),
                linux: Some(linux),
                ..Default::default()
            }),
            runtime_handler: String::new(),
        }
    }

    pub async fn run(&mut self, request: v1::RunPodSandboxRequest) -> Result<String, Status> {
        let answer = self.runtime.run_pod_sandbox(request).await?;
        Ok(answer.into_inner().pod_sandbox_id)
    }

    pub async fn run_pod(&mut self, name: &str) -> Result<String, Status> {
        self.run(self.request(name)).await
    }

    pub async fn stop_pod(&mut self, id: &str) -> Result<(), Status> {
        let request = v1::StopPodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        self.runtime.stop_pod_sandbox(request).await.map(|_| ())
    }

    pub async fn remove_pod(&mut self, id: &str) -> Result<(), Status> {
        let request = v1::RemovePodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        self.runtime.remove_pod_sandbox(request).await.map(|_| ())
    }

    pub async fn pods(&mut self) -> Vec<v1::PodSandbox> {
        let request = v1::ListPodSandboxRequest::default();
        self.runtime
            .list_pod_sandbox(request)
            .await
            .unwrap()
            .into_inner()
            .items
    }

    pub async fn status(&mut self, id: &str) -> Result<v1::PodSandboxStatusResponse, Status> {
        let request = v1::PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: true,
        };
        Ok(self.runtime.pod_sandbox_status(request).await?.into_inner())
    }

    pub async fn version(&mut self) -> v1::VersionResponse {
        self.runtime
            .version(v1::VersionRequest::default())
            .await
            .unwrap()
            .into_inner()
    }

    pub async fn conditions(&mut self) -> Vec<v1::RuntimeCondition> {
        let status = self
            .runtime
            .status(v1::StatusRequest::default())
            .await
            .unwrap();
        status.into_inner().status.unwrap().conditions
    }

    pub async fn vmm_pid(&mut self, id: &str) -> i32 {
        let status = self.status(id).await.unwrap();
        let info: serde_json::Value = serde_json::from_str(&status.info["info"]).unwrap();
        info["pid"].as_i64().unwrap().try_into().unwrap()
    }

    pub async fn kill_vmm(&mut self, id: &str) {
        kill(self.vmm_pid(id).await);
    }

    /// Waits until CRI shows the pod in a state.
    pub async fn until_state(&mut self, id: &str, state: i32) {
        let end = Instant::now() + PATIENCE;
        while self.status(id).await.unwrap().status.unwrap().state != state {
            assert!(Instant::now() < end, "the pod never came to state {state}");
        }
    }

    pub async fn until_nothing_held(&self) {
        let end = Instant::now() + PATIENCE;
        while self.holds() > 0 {
            assert!(Instant::now() < end, "{:?}", self.held());
            tokio::task::yield_now().await;
        }
    }

    /// What the agent of a pod was told.
    pub fn calls(&self, id: &str) -> String {
        std::fs::read_to_string(self.config.paths.pod(id).join("vm/calls")).unwrap()
    }

    /// What pods hold on the host: directories, disks, cgroups.
    pub fn held(&self) -> Vec<PathBuf> {
        let dirs = [
            self.config.paths.run_dir.join("pods"),
            self.config.paths.state_dir.join("pods"),
            self.cgroup.clone(),
        ];
        let entries = dirs.iter().flat_map(std::fs::read_dir).flatten().flatten();
        let paths = entries
            .filter(|e| e.file_type().unwrap().is_dir())
            .map(|e| e.path());
        paths.collect()
    }

    pub fn holds(&self) -> usize {
        self.held().len()
    }
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = child.id().unwrap().try_into().unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

pub fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

fn channel(socket: &Path) -> Channel {
    let path = socket.to_owned();
    Endpoint::from_static("http://cri.invalid").connect_with_connector_lazy(tower::service_fn(
        move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        },
    ))
}
