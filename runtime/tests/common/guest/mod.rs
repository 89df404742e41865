//! A stand-in for a guest: an agent that keeps containers in memory and "runs" a handful of
//! commands, and a VMM's control socket that counts disks. Both are real servers on real sockets,
//! with the real handshakes; each can be told to fail at a step. The daemon's unit tests have it in
//! their own process, the fake VMM in one that outlives daemons.

#![allow(dead_code, unreachable_pub)] // Each of the two uses its part.

mod session;

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex},
};

use bulkhead_proto::agent::{self as api, agent_server};
use futures::Stream;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::{Code, Request, Response, Status, Streaming};

/// The largest message that an agent takes.
const MAX_MESSAGE: usize = 16 << 20;

/// A guest in a process of its own, the fake VMM.
pub struct Vm {
    /// The VMM's directory.
    pub root: PathBuf,
    /// How it misbehaves.
    pub mode: String,
    /// What ends the process as a VMM does.
    pub stop: fn(&Path) -> !,
}

/// The guest and its VMM.
#[derive(Clone)]
pub struct Guest(Arc<Inner>);

struct Inner {
    vm: Option<Vm>,
    state: Mutex<State>,
    /// Counts changes of anything.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    processes: HashMap<(String, String), Process>,
    disks: BTreeSet<String>,
    /// How many parts each disk has that has parts.
    parts: HashMap<String, usize>,
    /// Layers.
    mounted: BTreeSet<String>,
    attached: usize,
    calls: Vec<String>,
    fail: HashMap<String, Status>,
    silent: BTreeSet<String>,
    events: Vec<api::Event>,
}

#[derive(Clone, Default)]
struct Process {
    args: Vec<String>,
    phase: i32,
    stdout: Vec<u8>,
    /// Everything before is forgotten.
    acknowledged: u64,
    exit: Option<api::Exit>,
}

impl Guest {
    /// Serves on these sockets of a VMM's directory.
    pub fn start(vsock: &Path, control: &Path) -> Self {
        Self::start_as(None, vsock, control)
    }

    /// The same; `vm` if this process is the VMM.
    pub fn start_as(vm: Option<Vm>, vsock: &Path, control: &Path) -> Self {
        let inner = Inner {
            vm,
            state: Mutex::default(),
            changed: watch::channel(0).0,
        };
        let guest = Self(Arc::new(inner));
        std::fs::create_dir_all(vsock.parent().unwrap()).unwrap();
        let (streams, incoming) = mpsc::unbounded_channel();
        let listener = UnixListener::bind(vsock).unwrap();
        let sessions = guest.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (streams, sessions) = (streams.clone(), sessions.clone());
                // A daemon that dies in the middle of it ends only this.
                tokio::spawn(async move {
                    let Ok(stream) = handshake(stream).await else {
                        return;
                    };
                    if session::is_one(&stream).await {
                        let _ = sessions.session(stream).await;
                    } else {
                        let _ = streams.send(Ok::<_, std::io::Error>(stream));
                    }
                });
            }
        });
        let server =
            agent_server::AgentServer::new(guest.clone()).max_decoding_message_size(MAX_MESSAGE);
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(server)
                .serve_with_incoming(UnboundedReceiverStream::new(incoming)),
        );
        let control = UnixListener::bind(control).unwrap();
        let vmm = guest.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = control.accept().await {
                let vmm = vmm.clone();
                tokio::spawn(async move { vmm.control(stream).await });
            }
        });
        guest
    }

    async fn control(&self, mut stream: UnixStream) {
        while let Ok(length) = stream.read_u32_le().await {
            let mut body = vec![0; usize::try_from(length).unwrap()];
            if stream.read_exact(&mut body).await.is_err() {
                return;
            }
            let request: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let answer = match &self.0.vm {
                Some(vm) if request.get("stop").is_some() => match vm.mode.as_str() {
                    "stubborn" => continue,
                    _ => (vm.stop)(&vm.root),
                },
                _ if request.get("metrics").is_some() => {
                    r#"{"ok": {"metrics": {"vmm_rss_bytes": 1}}}"#
                }
                _ if request.get("pin").is_some() => {
                    let groups = &request["pin"]["groups"];
                    match self.call(&format!("pin {groups}")) {
                        Ok(()) => r#"{"ok": {}}"#,
                        // One of an earlier release does not know the request.
                        Err(status) if status.code() == Code::Unimplemented => {
                            r#"{"error": {"kind": "bad_request", "message": "unknown"}}"#
                        }
                        Err(_) => r#"{"error": {"kind": "io", "message": "told to fail"}}"#,
                    }
                }
                _ => self.disk(&request),
            };
            let length = u32::try_from(answer.len()).unwrap();
            let answer = [&length.to_le_bytes(), answer.as_bytes()].concat();
            if stream.write_all(&answer).await.is_err() {
                return;
            }
        }
    }

    fn disk(&self, request: &serde_json::Value) -> &'static str {
        // The daemon of these was killed in between, perhaps.
        let may_repeat = self.0.vm.is_some();
        self.with(|state| {
            if let Some(id) = request["attach"]["disk"]["id"].as_str() {
                state.attached += 1;
                let number = format!("attach {}", state.attached);
                if state.fail.remove(&number).is_some() {
                    return r#"{"error":{"kind":"no_slot","message":"full"}}"#;
                }
                if let Some(parts) = request["attach"]["disk"]["parts"].as_array() {
                    state.parts.insert(id.to_owned(), parts.len());
                }
                if state.disks.insert(id.to_owned()) {
                    return r#"{"ok":{"slot":"00:01.0"}}"#;
                }
                assert!(may_repeat, "{id} is attached twice");
                return r#"{"error":{"kind":"exists","message":"it is there"}}"#;
            }
            if let Some(id) = request["detach"]["id"].as_str() {
                if state.disks.remove(id) {
                    return r#"{"ok":{}}"#;
                }
                assert!(may_repeat, "{id} is not attached");
                return r#"{"error":{"kind":"not_found","message":"it is not there"}}"#;
            }
            r#"{"error": {"kind": "unsupported", "message": "not in the fake"}}"#
        })
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.0.state.lock().unwrap());
        self.0.changed.send_modify(|count| *count += 1);
        result
    }

    /// The next call of this name fails; `attach N` is the nth disk.
    pub fn fail(&self, call: &str, code: Code) {
        self.fail_with(call, Status::new(code, "told to fail"));
    }

    pub fn fail_with(&self, call: &str, status: Status) {
        self.with(|state| state.fail.insert(call.to_owned(), status));
    }

    /// From now on this call gets no answer.
    pub fn never_answer(&self, call: &str) {
        self.with(|state| state.silent.insert(call.to_owned()));
    }

    pub fn disks(&self) -> Vec<String> {
        self.with(|state| state.disks.iter().cloned().collect())
    }

    /// Layers that are mounted.
    pub fn mounted(&self) -> Vec<String> {
        self.with(|state| state.mounted.iter().cloned().collect())
    }

    /// How many layers are on each disk that is there and has parts, fewest first.
    pub fn parts(&self) -> Vec<usize> {
        self.with(|state| {
            let disks = state.disks.iter();
            let mut parts: Vec<_> = disks
                .filter_map(|id| state.parts.get(id).copied())
                .collect();
            parts.sort_unstable();
            parts
        })
    }

    pub fn calls(&self) -> Vec<String> {
        self.with(|state| state.calls.clone())
    }

    /// Ids of containers, and `container/exec` of execs.
    pub fn processes(&self) -> Vec<String> {
        self.with(|state| {
            state
                .processes
                .keys()
                .map(|(container, exec)| format!("{container}/{exec}"))
                .collect()
        })
    }

    /// The container's process writes.
    pub fn write(&self, container: &str, text: &[u8]) {
        self.with(|state| state.process(container, "").stdout.extend_from_slice(text));
    }

    /// The container's process ends.
    pub fn exit(&self, container: &str, code: i32) {
        self.with(|state| state.end(container, "", code));
    }

    fn call(&self, name: &str) -> Result<(), Status> {
        self.with(|state| {
            state.calls.push(name.to_owned());
            match state.fail.remove(name) {
                Some(status) => Err(status),
                None => Ok(()),
            }
        })
    }
}

/// `CONNECT port`, `OK port`, then the agent's.
async fn handshake(mut stream: UnixStream) -> std::io::Result<UnixStream> {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        line.push(stream.read_u8().await?);
    }
    assert_eq!(line, b"CONNECT 1024\n");
    stream.write_all(b"OK 5000\n").await?;
    Ok(stream)
}

impl State {
    fn process(&mut self, container: &str, exec: &str) -> &mut Process {
        self.processes
            .get_mut(&(container.to_owned(), exec.to_owned()))
            .unwrap()
    }

    fn end(&mut self, container: &str, exec: &str, code: i32) {
        let process = self.process(container, exec);
        if process.exit.is_some() {
            return;
        }
        let exit = api::Exit {
            code,
            finished_at_unix_ns: 7,
            ..Default::default()
        };
        process.exit = Some(exit);
        process.phase = api::Phase::Exited as i32;
        if exec.is_empty() {
            let sequence = self.events.len() as u64;
            let what = Some(api::event::What::Exited(exit));
            self.events.push(api::Event {
                sequence,
                container_id: container.to_owned(),
                what,
            });
        }
    }

    /// The commands there are: `say TEXT CODE`, `flood BYTES`, everything else runs until killed.
    fn run(&mut self, container: &str, exec: &str) {
        let process = self.process(container, exec);
        process.phase = api::Phase::Running as i32;
        match process.args.clone().as_slice() {
            [say, text, code] if say == "say" => {
                process.stdout.extend_from_slice(text.as_bytes());
                self.end(container, exec, code.parse().unwrap());
            }
            [flood, bytes] if flood == "flood" => {
                process.stdout.resize(bytes.parse().unwrap(), b'x');
                self.end(container, exec, 0);
            }
            _ => {}
        }
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Answer<T> = Result<Response<T>, Status>;

fn absent<T>() -> Answer<T> {
    Err(Status::unimplemented("not in the fake"))
}

#[tonic::async_trait]
impl agent_server::Agent for Guest {
    async fn hello(&self, _: Request<api::HelloRequest>) -> Answer<api::HelloResponse> {
        Ok(Response::new(api::HelloResponse {
            version: "fake".to_owned(),
            ..Default::default()
        }))
    }
    async fn setup_sandbox(
        &self,
        request: Request<api::SetupSandboxRequest>,
    ) -> Answer<api::SetupSandboxResponse> {
        let Some(vm) = &self.0.vm else {
            return absent();
        };
        let told = format!("{:?}\n", request.get_ref());
        std::fs::write(vm.root.join("calls"), told).unwrap();
        match vm.mode.as_str() {
            "setup-fails" => Err(Status::invalid_argument("there is no such sysctl")),
            "setup-dies" => std::process::exit(7),
            _ => Ok(Response::new(api::SetupSandboxResponse {})),
        }
    }
    async fn mount_layers(
        &self,
        _: Request<api::MountLayersRequest>,
    ) -> Answer<api::MountLayersResponse> {
        absent()
    }
    async fn create_container(
        &self,
        request: Request<api::CreateContainerRequest>,
    ) -> Answer<api::CreateContainerResponse> {
        self.call("create")?;
        let request = request.into_inner();
        let spec: serde_json::Value = serde_json::from_slice(&request.oci_spec).unwrap();
        let args: Vec<String> = serde_json::from_value(spec["process"]["args"].clone()).unwrap();
        let unknown = args.first().is_some_and(|arg| arg == "as-nobody-known");
        self.with(|state| {
            for layer in &request.layers {
                let place = request.layer_places.iter().find(|p| p.layer == *layer);
                let disk = place.map_or(layer, |place| &place.disk);
                assert!(
                    state.disks.contains(disk),
                    "{layer} is not there: no disk {disk}"
                );
                state.mounted.insert(layer.clone());
            }
            let process = Process {
                args,
                ..Default::default()
            };
            state
                .processes
                .insert((request.container_id, String::new()), process);
        });
        let user = api::ResolvedUser {
            uid: 5,
            gid: 6,
            gids: vec![6, 7],
        };
        Ok(Response::new(api::CreateContainerResponse {
            user: Some(user).filter(|_| !unknown),
        }))
    }
    async fn start_container(
        &self,
        request: Request<api::StartContainerRequest>,
    ) -> Answer<api::StartContainerResponse> {
        self.call("start")?;
        self.with(|state| state.run(&request.get_ref().container_id, ""));
        Ok(Response::new(api::StartContainerResponse {
            started_at_unix_ns: 3,
        }))
    }
    async fn signal_process(
        &self,
        request: Request<api::SignalProcessRequest>,
    ) -> Answer<api::SignalProcessResponse> {
        let request = request.into_inner();
        self.call(&format!("signal {}", request.signal))?;
        let process = request.process.unwrap();
        self.with(|state| {
            let (id, exec) = (&process.container_id, &process.exec_id);
            let stubborn = state
                .process(id, exec)
                .args
                .first()
                .is_some_and(|arg| arg == "stubborn");
            if request.signal == 9 || !stubborn {
                state.end(id, exec, 128 + i32::try_from(request.signal).unwrap());
            }
        });
        Ok(Response::new(api::SignalProcessResponse {}))
    }
    async fn delete_container(
        &self,
        request: Request<api::DeleteContainerRequest>,
    ) -> Answer<api::DeleteContainerResponse> {
        self.call("delete")?;
        let request = request.into_inner();
        let id = request.container_id;
        self.with(|state| {
            state.processes.retain(|(container, _), _| *container != id);
            for layer in request.release_layers.iter().chain(&request.release_disks) {
                state.mounted.remove(layer);
            }
        });
        Ok(Response::new(api::DeleteContainerResponse {}))
    }
    async fn list_containers(
        &self,
        _: Request<api::ListContainersRequest>,
    ) -> Answer<api::ListContainersResponse> {
        self.call("list")?;
        let containers = self.with(|state| {
            let containers = state
                .processes
                .iter()
                .filter(|((_, exec), _)| exec.is_empty());
            let describe =
                |((id, _), process): (&(String, String), &Process)| api::ContainerState {
                    container_id: id.clone(),
                    phase: process.phase,
                    started_at_unix_ns: 3,
                    exit: process.exit,
                };
            containers.map(describe).collect()
        });
        Ok(Response::new(api::ListContainersResponse { containers }))
    }
    async fn update_container(
        &self,
        request: Request<api::UpdateContainerRequest>,
    ) -> Answer<api::UpdateContainerResponse> {
        let text = String::from_utf8(request.into_inner().resources.to_vec()).unwrap();
        self.call(&format!("update {text}"))?;
        Ok(Response::new(api::UpdateContainerResponse {}))
    }
    async fn resize_guest(
        &self,
        request: Request<api::ResizeGuestRequest>,
    ) -> Answer<api::ResizeGuestResponse> {
        let request = request.into_inner();
        match request.pids_limit {
            Some(limit) => self.call(&format!("limit to {limit} processes"))?,
            None => self.call(&format!("resize to {} CPUs", request.online_cpus))?,
        }
        Ok(Response::new(api::ResizeGuestResponse {
            online_cpus: request.online_cpus,
        }))
    }
    async fn adjust_clock(
        &self,
        _: Request<api::AdjustClockRequest>,
    ) -> Answer<api::AdjustClockResponse> {
        Err(Status::unimplemented("its clock is the host's"))
    }
    async fn resize_terminal(
        &self,
        _: Request<api::ResizeTerminalRequest>,
    ) -> Answer<api::ResizeTerminalResponse> {
        absent()
    }

    type WatchMemoryStream = Answers<api::MemoryDemand>;
    async fn watch_memory(
        &self,
        _: Request<api::WatchMemoryRequest>,
    ) -> Answer<Self::WatchMemoryStream> {
        absent()
    }
    type EventsStream = Answers<api::Event>;
    async fn events(&self, request: Request<api::EventsRequest>) -> Answer<Self::EventsStream> {
        let mut next = usize::try_from(request.into_inner().from_sequence).unwrap();
        let (sender, receiver) = mpsc::channel(4);
        let mut changed = self.0.changed.subscribe();
        let guest = self.clone();
        tokio::spawn(async move {
            loop {
                changed.borrow_and_update();
                let event = guest.0.state.lock().unwrap().events.get(next).cloned();
                let Some(event) = event else {
                    tokio::select! {
                        _ = changed.changed() => continue,
                        () = sender.closed() => return,
                    }
                };
                next += 1;
                if sender.send(Ok(event)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
    async fn stats(&self, request: Request<api::StatsRequest>) -> Answer<api::StatsResponse> {
        self.call("stats")?;
        if self.with(|state| state.silent.contains("stats")) {
            std::future::pending::<()>().await;
        }
        let of = |id: &String| api::ContainerStats {
            container_id: id.clone(),
            time_unix_ns: 9,
            cpu_usage_ns: 100,
            memory_working_set_bytes: 40,
            memory_limit_bytes: 100,
            ..Default::default()
        };
        let containers = request.get_ref().container_ids.iter().map(of).collect();
        Ok(Response::new(api::StatsResponse {
            containers,
            guest: None,
        }))
    }
    async fn put_volume(
        &self,
        _: Request<Streaming<api::PutVolumeRequest>>,
    ) -> Answer<api::PutVolumeResponse> {
        absent()
    }
    async fn resize_volume(
        &self,
        _: Request<api::ResizeVolumeRequest>,
    ) -> Answer<api::ResizeVolumeResponse> {
        absent()
    }
    async fn sync_volumes(
        &self,
        _: Request<api::SyncVolumesRequest>,
    ) -> Answer<api::SyncVolumesResponse> {
        absent()
    }
    async fn power_off(&self, _: Request<api::PowerOffRequest>) -> Answer<api::PowerOffResponse> {
        absent()
    }
}
