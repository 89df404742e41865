//! The life of containers against a fake guest: what each call does, what a failure at each step
//! leaves (nothing), and a daemon that dies in the middle. Here is the node they run on.

mod creation;
#[path = "../../../tests/common/guest/mod.rs"]
mod fakes;
mod processors;
mod running;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bulkhead_images::{ImageConfig, ImageRecord, LayerRecord, digest::Digest};
use bulkhead_proto::cri;
use bulkhead_records::Table;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use self::fakes::Guest;
use super::*;
use crate::{
    agent,
    app::App,
    config::Config,
    machine::{
        Machine as _, Process,
        vm::{JailDir, VirtualMachine},
    },
    records::{Records, Resource, SandboxRecord, Shape, testing},
    sandbox::Pod,
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
            "[paths]\nstate_dir = {:?}\nrun_dir = {:?}\nsocket = {:?}\n[cgroup]\nroot = {:?}\n",
            at("state"),
            at("run"),
            at("run/socket"),
            self.cgroups().display().to_string()
        );
        std::fs::create_dir_all(self.dir.path().join("state")).unwrap();
        Config::parse(Path::new("test.toml"), &text).unwrap()
    }

    /// Where cgroups are: plain directories, which take what is written.
    fn cgroups(&self) -> PathBuf {
        self.dir.path().join("cgroup")
    }

    /// The pod's own.
    fn leaf(&self) -> PathBuf {
        self.cgroups().join("bulkhead/leaf")
    }

    /// Two images that share a layer, and the pod's record, as daemons before this one left them.
    fn fill(&self) {
        let config = self.config();
        std::fs::create_dir_all(config.paths.layers()).unwrap();
        std::fs::create_dir_all(self.leaf()).unwrap();
        std::fs::write(self.cgroups().join("cpuset.cpus.effective"), "0-8\n").unwrap();
        for file in ["cpuset.cpus", "cpuset.mems"] {
            std::fs::write(self.leaf().join(file), "").unwrap();
        }
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
            let images = Table::<ImageRecord>::open(records.database()).unwrap();
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
                    config_file: String::new(),
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
                resources: vec![Resource::Cgroup { path: self.leaf() }],
                shape: Shape {
                    vcpus: 8,
                    ..testing::sandbox(POD).shape
                },
                ..testing::sandbox(POD)
            };
            records.sandboxes.put(sandbox).await.unwrap();
        });
    }

    /// A new daemon on this node.
    fn daemon(&self) -> Daemon {
        self.daemon_of(true)
    }

    /// A new daemon whose pod has a machine that knows disks of several layers, or not.
    fn daemon_of(&self, joins_layers: bool) -> Daemon {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build();
        let runtime = runtime.unwrap();
        let machine = Arc::new(VirtualMachine::of_pod(self.dir.path(), joins_layers));
        let app = runtime.block_on(async {
            let app = App::open(self.config()).unwrap();
            let agent = agent::connect(&machine.agent()).await.unwrap();
            let process = Process::adopt(std::process::id().cast_signed()).unwrap();
            let pod = Pod::new(POD.to_owned(), agent, machine, Arc::new(process));
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
        assert_eq!(node.guest.mounted(), Vec::<String>::new());
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
