//! RunPodSandbox: a pod comes up. Its resources are recorded, made in order, and undone in reverse
//! when a step fails.

use std::{os::unix::fs::PermissionsExt as _, sync::Arc, time::Duration};

use bulkhead_proto::{
    agent::Ready,
    cri::{ContainerEventType, PodSandboxConfig, RunPodSandboxRequest},
};

use super::{
    Pod, SandboxError, ending, growth, guest_clock, guest_setup, monitor, names, oom_score, pids,
    placement::{Bound, cgroup_parent, leaf, pod_limits},
    release::Extent,
    resize, scratch,
    settle::settle_surely,
    sizing,
    timeline::Timeline,
    validate::{self, ValidatedPod},
};
use crate::{
    agent::{self, AgentError, ReadyListener},
    app::App,
    cgroup::Leaf,
    clock::now_ns,
    container,
    error::chain,
    id::new_id,
    machine::{self, Machine, Process, Started, vm::jail},
    network::Attached,
    records::{
        InterfaceRecord, MachineKind, NetworkRecord, Resource, SandboxRecord, SandboxState, Shape,
    },
    status,
    task::{blocking, detached},
    volumes::share::Share,
};

/// The console's last words in an error.
const CONSOLE_TAIL: u32 = 2 * 1024;
/// Making a pod's writable disk: its template comes from mkfs the first time.
const HOST_DEADLINE: Duration = Duration::from_secs(120);

/// For a start of the same name that failed to be undone: CNI plugins may be slow.
const UNDO_DEADLINE: Duration = Duration::from_secs(30);

/// Runs a pod and gives its id. Goes on to its end, up or undone, even if the caller is dropped.
pub async fn run(app: Arc<App>, request: RunPodSandboxRequest) -> Result<String, SandboxError> {
    detached(start(app, request)).await
}

async fn start(app: Arc<App>, request: RunPodSandboxRequest) -> Result<String, SandboxError> {
    let timeline = Timeline::start();
    // Validate.
    let config = request.config.ok_or_else(|| SandboxError::Invalid {
        what: "the request has no config".to_owned(),
    })?;
    let handler = request.runtime_handler;
    let wanted = validate::validate(&config, &handler, &app.config)?;

    // Plan.
    let parent = cgroup_parent(&app, &config)?;
    let shape = match wanted.machine {
        MachineKind::Vm => shape(&app, &config, &parent).await?,
        MachineKind::Host => Shape {
            vcpus: 0,
            memory_mib: 0,
            scratch_mib: app.config.sandbox.scratch_mib,
            containers_memory: None,
            limits: None,
        },
    };
    let id = new_id().map_err(|source| SandboxError::Os {
        action: "make an id".to_owned(),
        source,
    })?;
    let name = names::name_of(&wanted.metadata);
    wait_for_undone(&app, &name).await;
    let uid = {
        let mut reserved = app.pods.reserved();
        reserved.take_name(&name, &id)?;
        match reserved.take_uid(app.config.vmm.uid_base, app.config.vmm.uid_count, &id) {
            Ok(uid) => uid,
            Err(e) => {
                reserved.free_name(&name, &id);
                return Err(e);
            }
        }
    };
    let leaf = leaf(&parent, &id, &shape);
    let record = SandboxRecord {
        id: id.clone(),
        config,
        handler,
        created_at: now_ns(),
        state: SandboxState::Creating,
        resources: resources(&app, &id, &wanted, uid, &leaf),
        machine: wanted.machine,
        joins_layers: wanted.machine == MachineKind::Vm,
        shape,
        network: None,
        placement: None,
        placing: false,
        phases: Vec::new(),
        exit: None,
    };
    let insert = app.records.sandboxes.insert(record);
    let record = match timeline.step("record", insert).await {
        Ok(record) => record,
        Err(e) => {
            let mut reserved = app.pods.reserved();
            reserved.free_name(&name, &id);
            reserved.free_uid(uid, &id);
            return Err(e.into());
        }
    };

    // Act.
    if wanted.machine == MachineKind::Host {
        // Never silently: the status says it too.
        let why = match record.handler.as_str() {
            "" => "it asks for namespaces of the host (sandbox.host_namespace_pods)",
            _ => "its handler says so",
        };
        tracing::info!(pod = %id, name, "the pod runs on the host, not in a virtual machine: {why}");
    }
    let start = Start {
        app: &app,
        record: &record,
        wanted: &wanted,
        uid,
        leaf: &leaf,
        timeline: &timeline,
    };
    match start.bring_up().await {
        Ok((pod, network)) => finish(&app, pod, network, &timeline).await,
        Err(error) => {
            tracing::warn!(pod = %id, name, "the start failed: {}", chain(&error));
            undo(&app, &id).await;
            Err(error)
        }
    }
}

/// If the name is that of a start that failed, or that an earlier daemon did not finish, waits until
/// that is undone: nobody sees such a pod, so nobody can remove it. If it stays, the name is taken.
async fn wait_for_undone(app: &App, name: &str) {
    let holder = app.pods.reserved().holder(name);
    if let Some(id) = holder
        && let Some(record) = app.records.sandboxes.get(&id)
        && record.state == SandboxState::Creating
    {
        // Who undoes it has its turn; who starts it has not.
        let _late = tokio::time::timeout(UNDO_DEADLINE, app.pods.turn(&id)).await;
    }
}

/// Record and announce a pod that is up.
async fn finish(
    app: &Arc<App>,
    pod: Arc<Pod>,
    network: NetworkRecord,
    timeline: &Timeline,
) -> Result<String, SandboxError> {
    let id = pod.id.clone();
    let phases = timeline.finish();
    let total = phases.last().map_or(0.0, |p| p.took_ms);
    app.pods.insert(Arc::clone(&pod));
    let ready = app.records.sandboxes.update(&id, move |record| {
        record.state = SandboxState::Ready;
        record.network = Some(network);
        record.phases = phases;
    });
    if let Err(error) = ready.await {
        undo(app, &id).await;
        return Err(error.into());
    }
    monitor::watch(app, &pod);
    guest_clock::keep(app, &pod);
    growth::follow(app, &pod);
    resize::follow_containers(app, &pod);
    container::pod_ready(app, &pod).await;
    if let Some(record) = app.records.sandboxes.get(&id) {
        status::sandbox_changed(app, ContainerEventType::ContainerCreatedEvent, &record);
        status::sandbox_changed(app, ContainerEventType::ContainerStartedEvent, &record);
    }
    tracing::info!(pod = %id, ms = total, "the pod is ready");
    resize::bring_up_the_rest(app, &pod);
    Ok(id)
}

/// Takes a failed start back: now as far as it goes, the rest later.
async fn undo(app: &Arc<App>, id: &str) {
    let _turn = app.pods.turn(id).await;
    // A failure is in the log, and tried again.
    let _later = settle_surely(app, id, Extent::Whole).await;
}

/// One start: what all its steps need.
struct Start<'a> {
    app: &'a Arc<App>,
    record: &'a SandboxRecord,
    wanted: &'a ValidatedPod,
    uid: u32,
    leaf: &'a Leaf,
    timeline: &'a Timeline,
}

impl Start<'_> {
    async fn bring_up(&self) -> Result<(Arc<Pod>, NetworkRecord), SandboxError> {
        let Self {
            app,
            record,
            timeline,
            ..
        } = *self;
        let id = &record.id;
        let machine = machine::of_record(record, &app.config.paths);
        let host_files = self.host_files(&machine);
        let (cgroup_procs, scratch) = timeline.step("host files", host_files).await?;
        let start = machine::Start {
            config: &app.config,
            network: &app.network,
            boots: &app.pods.boots,
            timeline,
            record,
            uid: self.uid,
            cgroup: self.leaf.path(),
            cgroup_procs,
            scratch,
            node_network: self.wanted.node.network,
            node_ipc: self.wanted.node.ipc,
        };
        let Started {
            process,
            has_tap,
            ready: listener,
            boot: permit,
            has_guest_clock,
        } = machine.start(start).await?;
        let process = Arc::new(process);
        oom_score::apply(app, record, &process);

        // CNI works and the process is recorded while the guest boots. All end in bounded time;
        // none is cut off by another's failure, so that what they made is whole when it is undone.
        let recorded = timeline.step("record process", self.record_process(&process));
        let attach = timeline.step("network", self.attach(&machine, has_tap));
        let boot = timeline.step("boot", async {
            let booted = self.boot(&machine, &process, listener).await;
            // Others may boot while CNI is still at work: it may wait for a pod of theirs.
            drop(permit);
            booted
        });
        let (recorded, attached, ready) = tokio::join!(recorded, attach, boot);
        let (ready, attached) = (ready?, attached?);
        recorded?;
        if has_guest_clock {
            self.note_guest(&ready);
        }

        let set_up = self.set_up(&machine, &attached);
        let agent = self
            .or_died(&process, timeline.step("guest set-up", set_up))
            .await?;

        let pod = Pod::new(id.clone(), agent, machine, process);
        Ok((pod, network_record(attached)))
    }

    /// What CNI gives the pod; in the host's network nothing.
    async fn attach(
        &self,
        machine: &Arc<dyn Machine>,
        has_tap: bool,
    ) -> Result<Attached, SandboxError> {
        if self.wanted.node.network {
            return Ok(Attached::default());
        }
        let Self { app, record, .. } = *self;
        let attach = app.network.attach(&record.id, &record.config, has_tap);
        let (attached, further) = attach.await?;
        for nic in further {
            machine.attach_nic(&app.config.vmm, nic).await?;
        }
        Ok(attached)
    }

    /// Directories, cgroup and writable disk.
    async fn host_files(
        &self,
        machine: &Arc<dyn Machine>,
    ) -> Result<(std::os::fd::OwnedFd, std::fs::File), SandboxError> {
        let paths = self.app.config.paths.clone();
        let root = self.app.config.cgroup.root.clone();
        let (leaf, machine, uid) = (self.leaf.clone(), Arc::clone(machine), self.uid);
        let (id, mib) = (self.record.id.clone(), self.record.shape.scratch_mib);
        let share = self.record.has_share();
        let bound = Bound::of(self.app, self.record, self.record.shape.memory_mib)?;
        let work = blocking(move || {
            for dir in [paths.pod(&id), paths.pod_state(&id)] {
                make_dir(&dir)?;
            }
            machine.make_dir(uid)?;
            if share {
                Share::of_pod(&paths.pod(&id)).create()?;
            }
            let cgroup_procs = leaf.create(&root)?;
            if let Some(bound) = bound {
                bound.set()?;
            }
            let disk = paths.pod_state(&id).join(guest_setup::SCRATCH_FILE);
            let disk = scratch::create(&paths.state_dir, &disk, mib)?;
            Ok((cgroup_procs, disk))
        });
        tokio::time::timeout(HOST_DEADLINE, work)
            .await
            .map_err(|_| SandboxError::Os {
                action: "make the pod's directories and disk".to_owned(),
                source: std::io::ErrorKind::TimedOut.into(),
            })?
    }

    /// Until its record is on disk the process is owned by its cgroup, which is on record: the
    /// release of that kills what is in it.
    async fn record_process(&self, process: &Process) -> Result<(), SandboxError> {
        let identity = process.identity();
        let recorded = self
            .app
            .records
            .sandboxes
            .update(&self.record.id, move |record| {
                for resource in &mut record.resources {
                    if let Resource::Vmm { process } = resource {
                        *process = Some(identity);
                    }
                }
            });
        recorded.await?;
        Ok(())
    }

    async fn boot(
        &self,
        machine: &Arc<dyn Machine>,
        process: &Process,
        listener: ReadyListener,
    ) -> Result<Ready, SandboxError> {
        let timeout = self.app.config.boot.timeout;
        let wait = async { Ok(listener.wait(timeout).await?) };
        match self.or_died(process, wait).await {
            Err(SandboxError::Agent(AgentError::NotReady { seconds })) => {
                let console = machine.console();
                let tail = tokio::task::spawn_blocking(move || {
                    jail::tail(&console, CONSOLE_TAIL).unwrap_or_default()
                });
                let console_tail = tail.await.unwrap_or_default();
                Err(SandboxError::Silent {
                    seconds,
                    console_tail,
                })
            }
            other => other,
        }
    }

    /// The result of `work`, or the VM's end if that comes first or explains its failure.
    async fn or_died<T>(
        &self,
        process: &Process,
        work: impl Future<Output = Result<T, SandboxError>>,
    ) -> Result<T, SandboxError> {
        let result = tokio::select! {
            biased;
            result = work => result,
            _ended = process.wait() => return Err(ending::while_starting(self.app, self.record).await),
        };
        let Err(error) = result else { return result };
        // A connection breaks a moment before its process is gone.
        let grace = Duration::from_millis(500);
        match tokio::time::timeout(grace, process.wait()).await {
            Ok(_ended) => Err(ending::while_starting(self.app, self.record).await),
            Err(_runs) => Err(error),
        }
    }

    /// Connects to the agent and tells the guest who it is.
    async fn set_up(
        &self,
        machine: &Arc<dyn Machine>,
        attached: &Attached,
    ) -> Result<agent::Agent, SandboxError> {
        let agent = agent::connect(&machine.agent()).await?;
        let paths = &self.app.config.paths;
        let pids_limit = match self.wanted.machine {
            MachineKind::Vm => {
                let cgroup = cgroup_parent(self.app, &self.record.config)?;
                pids::limit(self.app, &cgroup).await?
            }
            // It is in that cgroup.
            MachineKind::Host => 0,
        };
        let setup =
            guest_setup::request(self.record, self.wanted, attached, paths, pids_limit).await?;
        agent
            .call(
                "set the sandbox up",
                guest_setup::DEADLINE,
                |mut client| async move { client.setup_sandbox(setup).await },
            )
            .await?;
        Ok(agent)
    }

    /// The guest's own clock begins with its kernel.
    fn note_guest(&self, ready: &Ready) {
        let ms = |ns: u64| std::time::Duration::from_nanos(ns).as_secs_f64() * 1e3;
        self.timeline
            .measured("guest kernel", ms(ready.agent_started_ns));
        let agent = ready.agent_ready_ns.saturating_sub(ready.agent_started_ns);
        self.timeline.measured("guest agent", ms(agent));
    }
}

async fn shape(
    app: &App,
    config: &PodSandboxConfig,
    parent: &std::path::Path,
) -> Result<Shape, SandboxError> {
    let cgroup = pod_limits(app, config, parent).await?;
    sizing::shape(sizing::Given {
        sandbox: &app.config.sandbox,
        vmm: &app.config.vmm,
        linux: config.linux.as_ref(),
        cgroup: &cgroup,
    })
}

/// Everything the pod will hold, in the order it is made.
fn resources(app: &App, id: &str, wanted: &ValidatedPod, uid: u32, leaf: &Leaf) -> Vec<Resource> {
    let paths = &app.config.paths;
    let mut resources = vec![
        Resource::Uid { uid },
        Resource::Directory {
            path: paths.pod_state(id),
        },
        Resource::Directory {
            path: paths.pod(id),
        },
    ];
    let vm = wanted.machine == MachineKind::Vm;
    if vm && app.config.sandbox.volumes {
        resources.push(Resource::Share { pod: paths.pod(id) });
    }
    resources.push(Resource::Cgroup {
        path: leaf.path().to_owned(),
    });
    let netns = match wanted.node.network {
        true => None,
        false => app.network.netns(id),
    };
    resources.extend(netns.map(|netns| Resource::Network { netns }));
    resources.push(Resource::Vmm { process: None });
    resources
}

fn make_dir(dir: &std::path::Path) -> Result<(), SandboxError> {
    let make = || {
        std::fs::create_dir_all(dir)?;
        // The VMM, as its own user, passes through; nobody lists it.
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o711))
    };
    make().map_err(|source| SandboxError::Os {
        action: format!("make the directory {}", dir.display()),
        source,
    })
}

fn network_record(attached: Attached) -> NetworkRecord {
    let interfaces = attached
        .network
        .interfaces
        .into_iter()
        .map(|interface| InterfaceRecord {
            name: interface.name,
            mac: interface.mac,
            mtu: interface.mtu,
            addresses: interface.addresses,
        });
    NetworkRecord {
        addresses: attached.addresses,
        interfaces: interfaces.collect(),
    }
}
