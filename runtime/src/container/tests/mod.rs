//! The life of containers against a fake guest: what each call does, what a failure at each step
//! leaves (nothing), and a daemon that dies in the middle.

mod fakes;

use std::{path::Path, sync::Arc, time::Duration};

use bulkhead_proto::cri;
use tempfile::TempDir;
use tokio::{runtime::Runtime, sync::watch};
use tonic::Code;

use self::fakes::Guest;
use super::*;
use crate::{
    agent,
    config::Config,
    error::Grpc as _,
    images::{ImageConfig, ImageRecord, LayerRecord, digest::Digest},
    records::{Records, SandboxRecord, testing},
    sandbox::Machine,
    vmm::{JailDir, Process},
};

const POD: &str = "00000000000000000000000000000001";

/// A node: the daemon's state on disk, and one pod whose guest outlives daemons.
struct Node {
    dir: TempDir,
    /// Where the guest runs: not the daemon's runtime, so that the daemon can die alone.
    _outside: Runtime,
    guest: Guest,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let outside = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let jail = JailDir::of_pod(dir.path());
        let guest = outside.block_on(async { Guest::start(&jail.vsock(), &jail.control()) });
        let node = Self {
            dir,
            _outside: outside,
            guest,
        };
        node.fill();
        node
    }

    fn config(&self) -> Config {
        let at = |name: &str| self.dir.path().join(name).display().to_string();
        let text = format!(
            "[paths]\nstate_dir = {:?}\nrun_dir = {:?}\nsocket = {:?}\n",
            at("state"),
            at("run"),
            at("run/socket")
        );
        std::fs::create_dir_all(self.dir.path().join("state")).unwrap();
        Config::parse(Path::new("test.toml"), &text).unwrap()
    }

    /// Two images that share a layer, and the pod's record, as daemons before this one left them.
    fn fill(&self) {
        let config = self.config();
        std::fs::create_dir_all(config.paths.layers()).unwrap();
        let layer = |name: &str| {
            let diff_id = Digest::of(name.as_bytes());
            let file = config
                .paths
                .layers()
                .join(format!("{}.erofs", diff_id.hex()));
            std::fs::write(file, b"layer").unwrap();
            LayerRecord {
                digest: diff_id.clone(),
                diff_id,
                blob_size: 5,
                opaque_root: false,
                implicit_dirs: Vec::new(),
                file_size: 5,
            }
        };
        let records = Records::open(&config.paths.database()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            let images = records.table::<ImageRecord>().unwrap();
            for (name, top) in [("one", "b"), ("two", "c")] {
                let image = ImageRecord {
                    id: Digest::of(name.as_bytes()).to_string(),
                    listed: true,
                    repo_tags: vec![format!("docker.io/library/{name}:latest")],
                    repo_digests: Vec::new(),
                    config: ImageConfig {
                        cmd: vec!["serve".into()],
                        ..Default::default()
                    },
                    layers: vec![layer("a"), layer(top)],
                    size: 10,
                    pulled_at: 0,
                };
                images.put(image).await.unwrap();
            }
            let logs = self.dir.path().join("logs");
            let sandbox = SandboxRecord {
                config: cri::PodSandboxConfig {
                    log_directory: logs.display().to_string(),
                    hostname: "pod".to_owned(),
                    ..Default::default()
                },
                ..testing::sandbox(POD)
            };
            records.sandboxes.put(sandbox).await.unwrap();
        });
    }

    /// A new daemon on this node.
    fn daemon(&self) -> Daemon {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build();
        let runtime = runtime.unwrap();
        let machine = Machine::vm(JailDir::of_pod(self.dir.path()));
        let app = runtime.block_on(async {
            let app = App::open(self.config()).unwrap();
            let pod = Arc::new(Pod {
                id: POD.to_owned(),
                agent: agent::connect(&machine.agent()).await.unwrap(),
                machine,
                process: Arc::new(
                    Process::adopt(i32::try_from(std::process::id()).unwrap()).unwrap(),
                ),
                ended: watch::channel(None).1,
            });
            app.pods.insert(Arc::clone(&pod));
            recover(&app).await;
            pod_ready(&app, &pod).await;
            app
        });
        Daemon { app, runtime }
    }

    fn log(&self, name: &str) -> String {
        let text = std::fs::read_to_string(self.dir.path().join("logs").join(name)).unwrap();
        let lines = text
            .lines()
            .map(|line| line.splitn(4, ' ').nth(3).unwrap().to_owned() + "\n");
        lines.collect()
    }
}

struct Daemon {
    app: Arc<App>,
    runtime: Runtime,
}

impl Daemon {
    fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(60), work)
                .await
                .expect("no test takes this long")
        })
    }

    /// As `kill -9` does: every task stops where it is.
    fn die(self) {
        drop(self.app);
        self.runtime.shutdown_timeout(Duration::from_secs(10));
    }

    fn create(&self, request: cri::CreateContainerRequest) -> Result<String, ContainerError> {
        self.block_on(create(Arc::clone(&self.app), request))
    }

    fn running(&self, name: &str, command: &[&str]) -> String {
        let id = self.create(request(name, "one", command)).unwrap();
        self.block_on(start(Arc::clone(&self.app), &id)).unwrap();
        id
    }

    fn status(&self, id: &str) -> cri::ContainerStatus {
        status(&self.app, id, false).unwrap().status.unwrap()
    }

    fn wait_exited(&self, id: &str) -> cri::ContainerStatus {
        let live = self.app.containers.live(id);
        let wait = live.wait_ended(&self.app.records.containers, id, Duration::from_secs(20));
        assert!(self.block_on(wait), "it did not end");
        self.status(id)
    }

    fn wait_written(&self, node: &Node, name: &str, text: &str) {
        self.block_on(async {
            let mut tick = tokio::time::interval(Duration::from_millis(10));
            while node.log(name) != text {
                tick.tick().await;
            }
        });
    }

    fn remove(&self, id: &str) -> Result<(), ContainerError> {
        self.block_on(remove(Arc::clone(&self.app), id))
    }

    /// No trace of any container anywhere.
    fn assert_clean(&self, node: &Node) {
        assert!(self.app.records.containers.is_empty());
        assert!(self.app.images.holders().is_empty(), "an image is held");
        assert_eq!(node.guest.disks(), Vec::<String>::new());
        assert_eq!(node.guest.processes(), Vec::<String>::new());
        assert!(self.app.containers.checkpoints.list().unwrap().is_empty());
    }
}

fn request(name: &str, image: &str, command: &[&str]) -> cri::CreateContainerRequest {
    cri::CreateContainerRequest {
        pod_sandbox_id: POD.to_owned(),
        config: Some(cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata {
                name: name.to_owned(),
                attempt: 0,
            }),
            image: Some(cri::ImageSpec {
                image: image.to_owned(),
                ..Default::default()
            }),
            command: command.iter().map(|s| (*s).to_owned()).collect(),
            log_path: format!("{name}.log"),
            labels: [("app".to_owned(), name.to_owned())].into(),
            ..Default::default()
        }),
        sandbox_config: None,
    }
}

#[test]
fn from_creation_to_removal() {
    let node = Node::new();
    let daemon = node.daemon();
    let id = daemon
        .create(request("c", "one", &["say", "hello\nthere\n", "3"]))
        .unwrap();
    let created = daemon.status(&id);
    assert_eq!(created.state, cri::ContainerState::ContainerCreated as i32);
    let user = created.user.unwrap().linux.unwrap();
    assert_eq!(
        (user.uid, user.gid, user.supplemental_groups),
        (5, 6, vec![6, 7])
    );
    assert_eq!(node.guest.disks().len(), 2);

    daemon
        .block_on(start(Arc::clone(&daemon.app), &id))
        .unwrap();
    let exited = daemon.wait_exited(&id);
    assert_eq!((exited.exit_code, exited.reason.as_str()), (3, "Error"));
    assert_eq!((exited.started_at, exited.finished_at), (3, 7));
    // Who sees "exited" sees the whole log.
    assert_eq!(node.log("c.log"), "hello\nthere\n");
    let again = daemon
        .block_on(start(Arc::clone(&daemon.app), &id))
        .unwrap_err();
    assert_eq!(again.code(), Code::FailedPrecondition);

    daemon.remove(&id).unwrap();
    daemon.remove(&id).unwrap();
    daemon.block_on(stop(&daemon.app, &id, 1)).unwrap();
    daemon.assert_clean(&node);
    assert_eq!(
        status(&daemon.app, &id, false).unwrap_err().code(),
        Code::NotFound
    );
    let gone = daemon
        .block_on(start(Arc::clone(&daemon.app), &id))
        .unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
}

#[test]
fn a_failure_at_any_step_of_a_creation_leaves_nothing() {
    let node = Node::new();
    let daemon = node.daemon();
    let good = || request("c", "one", &["serve"]);
    let with = |change: fn(&mut cri::ContainerConfig)| {
        let mut request = good();
        change(request.config.as_mut().unwrap());
        request
    };
    let mut elsewhere = good();
    elsewhere.pod_sandbox_id = "0".repeat(32);
    let bad = [
        (elsewhere, Code::NotFound),
        (request("c", "none", &[]), Code::NotFound),
        (with(|c| c.metadata = None), Code::InvalidArgument),
        (with(|c| c.image = None), Code::InvalidArgument),
        (
            with(|c| c.mounts = vec![cri::Mount::default()]),
            Code::InvalidArgument,
        ),
        (
            with(|c| {
                c.mounts = vec![cri::Mount {
                    container_path: "/image".to_owned(),
                    readonly: true,
                    image: Some(cri::ImageSpec {
                        image: "none".to_owned(),
                        ..Default::default()
                    }),
                    ..Default::default()
                }];
            }),
            Code::NotFound,
        ),
        (
            with(|c| {
                c.mounts = vec![cri::Mount {
                    container_path: "/data".to_owned(),
                    host_path: "/no/such/path".to_owned(),
                    ..Default::default()
                }];
            }),
            Code::NotFound,
        ),
        (
            with(|c| c.log_path = "../up.log".to_owned()),
            Code::InvalidArgument,
        ),
        (with(|c| c.stop_signal = 99), Code::InvalidArgument),
    ];
    for (request, code) in bad {
        let error = daemon.create(request).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        daemon.assert_clean(&node);
    }
    for (step, injected, code) in [
        ("attach 1", Code::Internal, Code::ResourceExhausted),
        ("attach 3", Code::Internal, Code::ResourceExhausted),
        ("create", Code::InvalidArgument, Code::InvalidArgument),
    ] {
        node.guest.fail(step, injected);
        let error = daemon.create(good()).unwrap_err();
        assert_eq!(error.code(), code, "{step}: {error}");
        daemon.assert_clean(&node);
    }
    // A guest that does not let go at once is asked again.
    node.guest.fail("create", Code::Internal);
    node.guest.fail("delete", Code::FailedPrecondition);
    assert_eq!(daemon.create(good()).unwrap_err().code(), Code::Internal);
    assert_eq!(
        daemon.create(good()).unwrap_err().code(),
        Code::AlreadyExists
    );
    daemon.block_on(async {
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        while !daemon.app.records.containers.is_empty() {
            tick.tick().await;
        }
    });
    daemon.assert_clean(&node);
    // And then it works, under the same name.
    let id = daemon.create(good()).unwrap();
    daemon.remove(&id).unwrap();
    daemon.assert_clean(&node);
}

#[test]
fn a_start_that_fails_is_an_exit_with_128() {
    let node = Node::new();
    let daemon = node.daemon();
    let id = daemon.create(request("c", "one", &["serve"])).unwrap();
    node.guest.fail("start", Code::Internal);
    daemon
        .block_on(start(Arc::clone(&daemon.app), &id))
        .unwrap_err();
    let status = daemon.status(&id);
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (128, "StartError")
    );
    assert!(
        status.message.contains("told to fail"),
        "{}",
        status.message
    );
    daemon.remove(&id).unwrap();
    daemon.assert_clean(&node);
}

#[test]
fn a_layer_is_plugged_once_and_unplugged_with_its_last_container() {
    let node = Node::new();
    let daemon = node.daemon();
    let one = daemon.create(request("c1", "one", &["serve"])).unwrap();
    let two = daemon.create(request("c2", "two", &["serve"])).unwrap();
    assert_eq!(node.guest.disks().len(), 3, "the shared one counts once");
    daemon.remove(&one).unwrap();
    assert_eq!(node.guest.disks().len(), 2);
    daemon.remove(&two).unwrap();
    daemon.assert_clean(&node);
}

#[test]
fn a_name_is_taken_until_its_container_is_gone() {
    let node = Node::new();
    let daemon = node.daemon();
    let id = daemon.create(request("c", "one", &["serve"])).unwrap();
    let error = daemon.create(request("c", "two", &["serve"])).unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists);
    assert!(error.to_string().contains(&id), "{error}");
    daemon.remove(&id).unwrap();
    daemon.create(request("c", "two", &["serve"])).unwrap();
}

#[test]
fn stop_asks_first_and_kills_then() {
    let node = Node::new();
    let daemon = node.daemon();
    let obeys = daemon.running("c1", &["serve"]);
    daemon.block_on(stop(&daemon.app, &obeys, 10)).unwrap();
    assert_eq!(daemon.status(&obeys).exit_code, 143);
    let stubborn = daemon.running("c2", &["stubborn"]);
    daemon.block_on(stop(&daemon.app, &stubborn, 1)).unwrap();
    assert_eq!(daemon.status(&stubborn).exit_code, 137);
    let at_once = daemon.running("c3", &["serve"]);
    daemon.block_on(stop(&daemon.app, &at_once, 0)).unwrap();
    daemon.block_on(stop(&daemon.app, &at_once, 0)).unwrap();
    let signals: Vec<_> = node
        .guest
        .calls()
        .into_iter()
        .filter(|call| call.starts_with("signal"))
        .collect();
    assert_eq!(signals, ["signal 15", "signal 15", "signal 9", "signal 9"]);
    let left = daemon.running("c4", &["stubborn"]);
    daemon.remove(&left).unwrap();
    assert!(daemon.app.records.containers.get(&left).is_none());
}

#[test]
fn commands() {
    let node = Node::new();
    let daemon = node.daemon();
    let id = daemon.running("c", &["serve"]);
    let exec = |command: &[&str], timeout| {
        let command = command.iter().map(|s| (*s).to_owned()).collect();
        daemon.block_on(exec_sync(&daemon.app, &id, command, timeout))
    };
    let said = exec(&["say", "hi", "7"], 10).unwrap();
    assert_eq!(
        said,
        Output {
            stdout: b"hi".to_vec(),
            stderr: Vec::new(),
            exit_code: 7
        }
    );
    let flood = exec(&["flood", "20000000"], 0).unwrap();
    assert_eq!(
        flood.stdout.len(),
        16 * 1024 * 1024,
        "the rest was drained and dropped"
    );
    let late = exec(&["hang"], 1).unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded);
    assert_eq!(exec(&[], 0).unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(exec(&["x"], -1).unwrap_err().code(), Code::InvalidArgument);
    node.guest.fail("exec", Code::NotFound);
    assert_eq!(exec(&["none"], 0).unwrap_err().code(), Code::NotFound);
    // The command is forgotten; the container runs on.
    daemon.block_on(async {
        let mut tick = tokio::time::interval(Duration::from_millis(10));
        while node.guest.processes() != [format!("{id}/")] {
            tick.tick().await;
        }
    });
    assert_eq!(
        daemon.status(&id).state,
        cri::ContainerState::ContainerRunning as i32
    );
    node.guest.exit(&id, 0);
    assert_eq!(daemon.wait_exited(&id).reason, "Completed");
    assert_eq!(
        exec(&["say", "hi", "0"], 1).unwrap_err().code(),
        Code::FailedPrecondition
    );
}

#[test]
fn the_daemon_dies_and_the_next_one_goes_on() {
    let node = Node::new();
    let daemon = node.daemon();
    let lives = daemon.running("lives", &["serve"]);
    let ends = daemon.running("ends", &["serve"]);
    let idle = daemon.create(request("idle", "two", &["serve"])).unwrap();
    node.guest.write(&lives, b"before\nhalf a");
    daemon.wait_written(&node, "lives.log", "before\n");
    daemon.die();

    node.guest.write(&lives, b" line\nmeanwhile\n");
    node.guest.write(&ends, b"last words");
    node.guest.exit(&ends, 4);

    let daemon = node.daemon();
    assert_eq!(daemon.wait_exited(&ends).exit_code, 4);
    assert_eq!(node.log("ends.log"), "last words\n");
    daemon.wait_written(&node, "lives.log", "before\nhalf a line\nmeanwhile\n");
    assert_eq!(
        daemon.status(&idle).state,
        cri::ContainerState::ContainerCreated as i32
    );
    daemon
        .block_on(start(Arc::clone(&daemon.app), &idle))
        .unwrap();
    let command = vec!["say".to_owned(), "hi".to_owned(), "0".to_owned()];
    daemon
        .block_on(exec_sync(&daemon.app, &lives, command, 5))
        .unwrap();
    node.guest.write(&lives, b"after\n");
    daemon.wait_written(
        &node,
        "lives.log",
        "before\nhalf a line\nmeanwhile\nafter\n",
    );
    for id in [lives, ends, idle] {
        daemon.remove(&id).unwrap();
    }
    daemon.assert_clean(&node);
}

#[test]
fn a_rotated_log_goes_on_in_the_new_file() {
    let node = Node::new();
    let daemon = node.daemon();
    let id = daemon.running("c", &["serve"]);
    node.guest.write(&id, b"old\npart");
    daemon.wait_written(&node, "c.log", "old\n");
    let logs = node.dir.path().join("logs");
    std::fs::rename(logs.join("c.log"), logs.join("c.log.1")).unwrap();
    daemon.block_on(reopen_log(&daemon.app, &id)).unwrap();
    assert!(logs.join("c.log").exists());
    node.guest.write(&id, b" two\n");
    daemon.wait_written(&node, "c.log", "part two\n");
    assert_eq!(node.log("c.log.1"), "old\n");
    node.guest.exit(&id, 0);
    daemon.wait_exited(&id);
    let error = daemon.block_on(reopen_log(&daemon.app, &id)).unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
}

#[test]
fn a_guest_that_is_gone_takes_its_containers_along() {
    let node = Node::new();
    let daemon = node.daemon();
    let runs = daemon.running("c1", &["serve"]);
    let waits = daemon.create(request("c2", "one", &["serve"])).unwrap();
    node.guest.write(&runs, b"no newline");
    daemon.app.pods.remove(POD);
    daemon.block_on(pod_gone(&daemon.app, POD, "the VM crashed"));
    for id in [&runs, &waits] {
        let status = daemon.status(id);
        assert_eq!(
            (status.exit_code, status.message.as_str()),
            (137, "the VM crashed")
        );
    }
    daemon.block_on(stop(&daemon.app, &runs, 5)).unwrap();
    daemon.remove(&waits).unwrap();
    daemon.block_on(pod_removed(&daemon.app, POD));
    assert!(daemon.app.records.containers.is_empty());
    assert!(daemon.app.images.holders().is_empty());
}

#[test]
fn lists_and_filters() {
    let node = Node::new();
    let daemon = node.daemon();
    let one = daemon.running("c1", &["serve"]);
    let two = daemon.create(request("c2", "two", &["serve"])).unwrap();
    let ids = |filter: cri::ContainerFilter| -> Vec<String> {
        let found = list(&daemon.app, Some(&filter)).unwrap();
        found.into_iter().map(|container| container.id).collect()
    };
    let none = cri::ContainerFilter::default;
    assert_eq!(list(&daemon.app, None).unwrap().len(), 2);
    assert_eq!(
        ids(cri::ContainerFilter {
            id: one[..9].to_owned(),
            ..none()
        }),
        [one.as_str()]
    );
    let state = Some(cri::ContainerStateValue { state: 0 });
    assert_eq!(
        ids(cri::ContainerFilter { state, ..none() }),
        [two.as_str()]
    );
    let label_selector = [("app".to_owned(), "c2".to_owned())].into();
    assert_eq!(
        ids(cri::ContainerFilter {
            label_selector,
            ..none()
        }),
        [two.as_str()]
    );
    let pod_sandbox_id = "f".to_owned();
    assert!(
        ids(cri::ContainerFilter {
            pod_sandbox_id,
            ..none()
        })
        .is_empty()
    );

    let stats = daemon.block_on(list_stats(&daemon.app, None));
    assert_eq!(stats.len(), 2);
    let memory = stats[0].memory.as_ref().unwrap();
    assert_eq!(memory.available_bytes.as_ref().unwrap().value, 60);
    node.guest.fail("stats", Code::Internal);
    assert!(
        daemon.block_on(list_stats(&daemon.app, None)).is_empty(),
        "left out, not failed"
    );
}

#[test]
fn limits_change_in_guest_and_record() {
    let node = Node::new();
    let daemon = node.daemon();
    let id = daemon.running("c", &["serve"]);
    let asked = |memory| cri::LinuxContainerResources {
        memory_limit_in_bytes: memory,
        ..Default::default()
    };
    daemon
        .block_on(update(&daemon.app, &id, asked(1 << 28)))
        .unwrap();
    let now = daemon.status(&id).resources.unwrap().linux.unwrap();
    assert_eq!(now.memory_limit_in_bytes, 1 << 28);
    assert!(
        node.guest
            .calls()
            .iter()
            .any(|call| call.contains(r#""limit":268435456"#))
    );
    let error = daemon
        .block_on(update(&daemon.app, &id, asked(5)))
        .unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    node.guest.exit(&id, 0);
    daemon.wait_exited(&id);
    let error = daemon
        .block_on(update(&daemon.app, &id, asked(1 << 28)))
        .unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
}
