//! An agent on a Unix socket with an image of one busybox layer, and a client for it.
//!
//! Needs root and cgroup v2 with all controllers (the test host has both); elsewhere each test
//! says why it does not run.

// Tests fail by panicking, and say why they are skipped.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    clippy::panic
)]

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bulkhead_proto::agent::agent_client::AgentClient;
use bulkhead_proto::agent::session_request::What;
use bulkhead_proto::agent::*;
use bulkhead_proto::session::{self, FRAME_HEADER, Frame};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

/// Everything in an emulated machine is slow; a hang is still a failure.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// Where an agent listens.
#[derive(Clone)]
pub enum Address {
    /// Its own socket.
    Unix(PathBuf),
    /// Behind the VMM's vsock socket.
    Vsock(PathBuf),
}

impl Address {
    pub async fn dial(self) -> std::io::Result<UnixStream> {
        let path = match self {
            Self::Unix(path) => return UnixStream::connect(path).await,
            Self::Vsock(path) => path,
        };
        let mut stream = UnixStream::connect(path).await?;
        stream.write_all(b"CONNECT 1024\n").await?;
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            line.push(stream.read_u8().await?);
        }
        assert!(line.starts_with(b"OK "));
        Ok(stream)
    }
}

pub struct TestAgent {
    pub client: AgentClient<Channel>,
    pub address: Address,
    pub child: Child,
    pub directory: tempfile::TempDir,
}

impl Drop for TestAgent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // What the agent's containers had mounted goes with the directory.
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let base = self.directory.path().to_str().unwrap_or_default();
        for target in mounts
            .lines()
            .rev()
            .filter_map(|line| line.split(' ').nth(1))
        {
            if target.starts_with(base) {
                let _ = Command::new("umount").arg("-l").arg(target).status();
            }
        }
    }
}

/// Why the tests cannot run here, if so.
pub fn obstacle() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root");
    }
    let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers");
    if !controllers.is_ok_and(|list| list.contains("memory") && list.contains("pids")) {
        return Some("no cgroup v2 with the memory and pids controllers at /sys/fs/cgroup");
    }
    if !std::path::Path::new("/bin/busybox").exists() {
        return Some("no static busybox at /bin/busybox");
    }
    None
}

/// An agent, or the test's end (and a line that says why) where it cannot run; with `setup`, for a pod
/// that is set up.
#[allow(unused_macros)] // each test program uses a part
macro_rules! agent {
    () => {
        match common::TestAgent::start().await {
            Some(agent) => agent,
            None => return,
        }
    };
    (setup) => {
        match common::TestAgent::start().await {
            Some(mut agent) => {
                agent.setup().await;
                agent
            }
            None => return,
        }
    };
}

impl TestAgent {
    /// An agent, or `None` (and a line that says why) where tests of containers cannot run.
    pub async fn start() -> Option<Self> {
        Self::start_in(None).await
    }

    /// An agent in a network namespace.
    pub async fn start_in(namespace: Option<&str>) -> Option<Self> {
        if let Some(reason) = obstacle() {
            eprintln!("skipped: {reason}");
            return None;
        }
        let directory = tempfile::tempdir_in("/run").unwrap();
        // As /run/bulkhead of a guest: root of a user namespace must get through.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(directory.path(), open).unwrap();
        make_layer(&directory.path().join("state/layers/busybox"));
        let socket = directory.path().join("agent.sock");
        // The test host gives a copy where programs can be replaced while they run.
        let program = std::env::var_os("BULKHEAD_AGENT")
            .unwrap_or_else(|| env!("CARGO_BIN_EXE_bulkhead-agent").into());
        let mut command = match namespace {
            None => Command::new(program),
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(program);
                command
            }
        };
        let child = command
            .arg("--listen")
            .arg(format!("unix:{}", socket.display()))
            .arg("--state")
            .arg(directory.path().join("state"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let address = Address::Unix(socket);
        let client = timeout(DEADLINE, connect(address.clone()))
            .await
            .expect("the agent does not serve");
        Some(Self {
            client,
            address,
            child,
            directory,
        })
    }

    /// Sets up the pod, as far as that is possible without a network.
    pub async fn setup(&mut self) {
        self.setup_with(None).await;
    }

    /// With users of its own.
    pub async fn setup_with(&mut self, user_namespace: Option<UserNamespace>) {
        let request = SetupSandboxRequest {
            user_namespace,
            ..Default::default()
        };
        self.client.setup_sandbox(request).await.unwrap();
    }

    pub fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// Builds a container that runs a shell script.
    pub async fn create(&mut self, id: &str, script: &str) {
        self.create_with(request(id, &["sh", "-c", script]))
            .await
            .unwrap();
    }

    pub async fn create_with(
        &mut self,
        request: CreateContainerRequest,
    ) -> Result<CreateContainerResponse, tonic::Status> {
        self.client
            .create_container(request)
            .await
            .map(tonic::Response::into_inner)
    }

    pub async fn begin(&mut self, id: &str) -> Result<(), tonic::Status> {
        let request = StartContainerRequest {
            container_id: id.into(),
        };
        self.client.start_container(request).await.map(drop)
    }

    pub async fn delete(&mut self, id: &str) {
        let request = DeleteContainerRequest {
            container_id: id.into(),
            ..DeleteContainerRequest::default()
        };
        self.client.delete_container(request).await.unwrap();
    }

    /// Sends a signal to a container's first process, or to an exec.
    pub async fn signal(&mut self, id: &str, exec: &str, signal: u32) {
        let request = SignalProcessRequest {
            process: Some(process(id, exec)),
            signal,
            all: false,
        };
        self.client.signal_process(request).await.unwrap();
    }

    /// Runs a container to its end: output, errors, exit.
    pub async fn run(&mut self, id: &str, script: &str) -> (String, String, Exit) {
        self.create(id, script).await;
        self.begin(id).await.unwrap();
        let all = self.collect(id).await;
        self.delete(id).await;
        all
    }

    /// Opens a session.
    pub async fn session(&self, what: What) -> Result<UnixStream, tonic::Status> {
        let open = async {
            let mut stream = self.address.clone().dial().await?;
            let request = SessionRequest { what: Some(what) };
            stream.write_all(&session::opening(&request)).await?;
            let mut body = vec![0; usize::try_from(stream.read_u32().await?).unwrap()];
            stream.read_exact(&mut body).await?;
            std::io::Result::Ok((stream, body))
        };
        let (stream, body) = timeout(DEADLINE, open).await.unwrap().unwrap();
        let answer: SessionResponse = session::message(&body).unwrap();
        match tonic::Code::from(i32::try_from(answer.code).unwrap()) {
            tonic::Code::Ok => Ok(stream),
            code => Err(tonic::Status::new(code, answer.message)),
        }
    }

    /// Starts a further process; the session is its life.
    pub async fn exec(&self, request: ExecRequest) -> Result<UnixStream, tonic::Status> {
        self.session(What::Exec(request)).await
    }

    /// Sends input, then ends the session.
    pub async fn input(&self, id: &str, data: &[u8]) -> Result<(), tonic::Status> {
        let mut session = self.session(What::Input(process(id, ""))).await?;
        session.write_all(data).await.unwrap();
        session.shutdown().await.unwrap();
        // It ends when all is with the process.
        let mut rest = Vec::new();
        let ended = timeout(DEADLINE, session.read_to_end(&mut rest)).await;
        assert_eq!(ended.expect("the session does not end").unwrap(), 0);
        Ok(())
    }

    /// A container's output from given offsets on.
    pub async fn output(&self, id: &str, stdout: u64) -> Result<UnixStream, tonic::Status> {
        let request = OutputRequest {
            process: Some(process(id, "")),
            stdout_offset: stdout,
            stderr_offset: 0,
        };
        self.session(What::Output(request)).await
    }

    /// Everything a container writes, to its exit.
    pub async fn collect(&self, id: &str) -> (String, String, Exit) {
        text(self.collect_bytes(id).await)
    }

    pub async fn collect_bytes(&self, id: &str) -> (Vec<u8>, Vec<u8>, Exit) {
        collect(self.output(id, 0).await.unwrap(), true).await
    }

    /// A further process in a container, to its end.
    pub async fn exec_sh(&self, id: &str, exec: &str, script: &str) -> (String, String, Exit) {
        let request = exec_request(id, exec, &["sh", "-c", script]);
        text(collect(self.exec(request).await.unwrap(), false).await)
    }
}

pub fn text((stdout, stderr, exit): (Vec<u8>, Vec<u8>, Exit)) -> (String, String, Exit) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (text(stdout), text(stderr), exit)
}

/// The next frame of a session, and what is in it.
pub async fn frame(session: &mut UnixStream) -> (Frame, Vec<u8>) {
    let next = async {
        let mut header = [0; FRAME_HEADER];
        session.read_exact(&mut header).await.unwrap();
        let frame = Frame::parse(header).unwrap();
        let length = match frame {
            Frame::Alive => 0,
            Frame::Output(output) => output.length,
            Frame::Exit(length) => length,
        };
        let mut body = vec![0; length];
        session.read_exact(&mut body).await.unwrap();
        (frame, body)
    };
    timeout(DEADLINE, next).await.expect("output stopped")
}

/// Reads a session to the exit; with `acknowledge`, says what is safe.
pub async fn collect(mut session: UnixStream, acknowledge: bool) -> (Vec<u8>, Vec<u8>, Exit) {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        let (frame, body) = frame(&mut session).await;
        match frame {
            Frame::Alive => {}
            Frame::Exit(_) => return (stdout, stderr, session::message(&body).unwrap()),
            Frame::Output(output) => {
                let to = match output.stream {
                    Stream::Stdout => &mut stdout,
                    Stream::Stderr => &mut stderr,
                };
                assert_eq!(output.offset, to.len() as u64, "lost or doubled");
                to.extend_from_slice(&body);
                if acknowledge {
                    let word = session::acknowledgement(stdout.len() as u64, stderr.len() as u64);
                    // After the exit the agent hears no more.
                    let _ = session.write_all(&word).await;
                }
            }
        }
    }
}

/// What is left of a session, to the exit: the output of both streams as it comes.
pub async fn rest(mut session: UnixStream) -> (Vec<u8>, Exit) {
    let mut output = Vec::new();
    loop {
        let (next, body) = frame(&mut session).await;
        match next {
            Frame::Alive => {}
            Frame::Output(_) => output.extend_from_slice(&body),
            Frame::Exit(_) => return (output, session::message(&body).unwrap()),
        }
    }
}

/// What `seq 1 TO` writes, with an end of line.
pub fn numbers(to: u32, end: &str) -> String {
    (1..=to).map(|n| format!("{n}{end}")).collect()
}

/// A container's cgroup.
pub fn cgroup(container: &str) -> PathBuf {
    PathBuf::from("/sys/fs/cgroup/bulkhead").join(container)
}

/// A client, tried until the agent answers.
pub async fn connect(address: Address) -> AgentClient<Channel> {
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    loop {
        tick.tick().await;
        let address = address.clone();
        let connector = service_fn(move |_: Uri| {
            let address = address.clone();
            async move { address.dial().await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://agent");
        if let Ok(channel) = endpoint.connect_with_connector(connector).await {
            return AgentClient::new(channel).max_decoding_message_size(64 << 20);
        }
    }
}

pub fn process(id: &str, exec: &str) -> ProcessRef {
    ProcessRef {
        container_id: id.into(),
        exec_id: exec.into(),
    }
}

pub fn exec_request(id: &str, exec: &str, args: &[&str]) -> ExecRequest {
    ExecRequest {
        container_id: id.into(),
        exec_id: exec.into(),
        args: args.iter().map(ToString::to_string).collect(),
        ..Default::default()
    }
}

/// What the daemon sends for an ordinary container, as a value that tests change.
pub fn spec(args: &[&str]) -> serde_json::Value {
    let capabilities = [
        "CAP_CHOWN",
        "CAP_KILL",
        "CAP_SETUID",
        "CAP_SETGID",
        "CAP_MKNOD",
    ];
    serde_json::json!({
        "ociVersion": "1.2.0",
        "process": {
            "args": args,
            "env": ["PATH=/bin"],
            "cwd": "/",
            "user": {"uid": 0, "gid": 0},
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities
            }
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}
        ],
        "linux": {
            "namespaces": [{"type": "mount"}, {"type": "pid"}],
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"]
        }
    })
}

pub fn request(id: &str, args: &[&str]) -> CreateContainerRequest {
    request_with(id, &spec(args))
}

pub fn request_with(id: &str, spec: &serde_json::Value) -> CreateContainerRequest {
    CreateContainerRequest {
        container_id: id.into(),
        oci_spec: serde_json::to_vec(spec).unwrap().into(),
        layers: vec!["busybox".into()],
        ..Default::default()
    }
}

/// An image of one layer: busybox, its names, and two users.
pub fn make_layer(layer: &Path) {
    for name in ["bin", "etc", "proc", "sys", "dev", "tmp"] {
        std::fs::create_dir_all(layer.join(name)).unwrap();
    }
    std::fs::copy("/bin/busybox", layer.join("bin/busybox")).unwrap();
    for name in [
        "sh", "cat", "echo", "sleep", "id", "ls", "env", "head", "dd", "tty", "stty", "ps", "wc",
        "grep", "kill", "mknod", "pwd", "true", "seq", "md5sum", "tail", "mount", "hostname",
        "date", "test",
    ] {
        symlink("busybox", layer.join("bin").join(name)).unwrap();
    }
    std::fs::write(layer.join("bin/plain"), "text\n").unwrap();
    std::fs::write(
        layer.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/home/web:/bin/sh\n",
    )
    .unwrap();
    std::fs::write(
        layer.join("etc/group"),
        "root:x:0:\nweb:x:1000:\nadm:x:4:web\n",
    )
    .unwrap();
}
