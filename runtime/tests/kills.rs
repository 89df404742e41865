//! A daemon that is killed at every single write of a record, in the middle of everything a kubelet
//! asks for: the next one must show each pod and container as it was before the call or as it is
//! after it, settle what is left by itself, let the kubelet go on, and leak nothing.
//!
//! The calls are one pod's life, made in order by a client that repeats what was not answered. Per
//! write there are three runs: the daemon dies right before it, right after it, and right after it
//! with every following daemon dying after a write of its own until there is nothing left to write.
//!
//! Needs root and a cgroup version 2 hierarchy; without them it says so and counts as skipped.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::panic,
    reason = "helpers of tests may fail by panicking, and say why they skip"
)]

mod common;

use std::{collections::BTreeMap, path::Path};

use bulkhead_images::{ImageConfig, ImageRecord, LayerRecord, digest::Digest, store::HoldRecord};
use bulkhead_proto::cri as v1;
use bulkhead_records::Table;
use bulkhead_runtime::records::Records;
use common::{Daemon, Death};
use futures::StreamExt as _;
use tonic::{Code, Status};

/// Lives at one time: each has a daemon, and waits for it.
const AT_ONCE: usize = 6;

/// Of daemons that write once and die, in a row.
const MOST_DEATHS: usize = 40;

/// Runs until it is killed; its stop signal is answered with 143.
const SERVE: &[&str] = &["serve"];
/// Writes a line and ends by itself.
const SAY: &[&str] = &["say", "all of it\n", "4"];

/// What the client does, in order. Each may be repeated.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Call {
    Run,
    Create(&'static str, &'static [&'static str]),
    Start(&'static str),
    /// Not a call: waits until the container has ended by itself.
    Ended(&'static str),
    Stop(&'static str),
    Remove(&'static str),
    StopPod,
    RemovePod,
}

const CALLS: &[Call] = &[
    Call::Run,
    Call::Create("stopped", SERVE),
    Call::Start("stopped"),
    Call::Create("ends", SAY),
    Call::Start("ends"),
    Call::Ended("ends"),
    Call::Stop("stopped"),
    Call::Create("runs", SERVE),
    Call::Start("runs"),
    Call::Create("never-started", SERVE),
    Call::Create("removed", SERVE),
    Call::Start("removed"),
    Call::Remove("removed"),
    Call::StopPod,
    Call::Remove("stopped"),
    Call::RemovePod,
];

/// What CRI shows.
#[derive(Debug, Clone, PartialEq, Default)]
struct World {
    /// Whether the pod is ready, if it is there.
    pod: Option<bool>,
    /// Containers by name.
    containers: BTreeMap<String, Container>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Container {
    Created,
    Running,
    Exited(i32),
}

impl World {
    /// All that it may be once a call is done.
    fn after(&self, call: Call) -> Vec<Self> {
        let with = |name: &str, state: Container| {
            let mut world = self.clone();
            world.containers.insert(name.to_owned(), state);
            world
        };
        match call {
            Call::Run => vec![Self {
                pod: Some(true),
                ..Self::default()
            }],
            Call::Create(name, _) => vec![with(name, Container::Created)],
            Call::Start("ends") => vec![
                with("ends", Container::Running),
                with("ends", Container::Exited(4)),
            ],
            Call::Start(name) => vec![with(name, Container::Running)],
            Call::Ended(name) => vec![with(name, Container::Exited(4))],
            Call::Stop(name) => vec![with(name, Container::Exited(143))],
            Call::Remove(name) => {
                let mut world = self.clone();
                world.containers.remove(name);
                vec![world]
            }
            Call::StopPod => {
                let mut world = self.clone();
                world.pod = Some(false);
                for state in world.containers.values_mut() {
                    if !matches!(state, Container::Exited(_)) {
                        *state = Container::Exited(137);
                    }
                }
                vec![world]
            }
            Call::RemovePod => vec![Self::default()],
        }
    }

    /// All that a daemon may show, once it has settled, which comes after one that died in the call.
    fn after_death_in(&self, call: Call) -> Vec<Self> {
        let mut worlds = vec![self.clone()];
        worlds.extend(self.after(call));
        match call {
            // Its process had been killed, and that was not on record: it ended before its removal.
            Call::Remove(name) if self.containers.get(name) == Some(&Container::Running) => {
                let mut world = self.clone();
                world
                    .containers
                    .insert(name.to_owned(), Container::Exited(137));
                worlds.push(world);
            }
            // Containers go one by one, and each may be the last that went.
            Call::RemovePod => {
                let names: Vec<_> = self.containers.keys().cloned().collect();
                for subset in 0..1_usize << names.len() {
                    let mut world = self.clone();
                    for (bit, name) in names.iter().enumerate() {
                        if subset & (1 << bit) != 0 {
                            world.containers.remove(name);
                        }
                    }
                    worlds.push(world);
                }
            }
            _ => {}
        }
        // One that ends by itself may have.
        let more: Vec<_> = worlds
            .iter()
            .filter(|world| world.containers.get("ends") == Some(&Container::Running))
            .flat_map(|world| world.after(Call::Ended("ends")))
            .collect();
        worlds.extend(more);
        worlds
    }
}

/// A node with an image, and the client.
struct Node {
    daemon: Daemon,
    pod: String,
}

impl Node {
    async fn start(death: Death) -> Option<Self> {
        let mut daemon = Daemon::prepare("", "/proc/self/exe")?;
        fill(&daemon).await;
        daemon.start_daemon_that(death).await;
        let pod = String::new();
        Some(Self { daemon, pod })
    }

    async fn call(&mut self, call: Call) -> Result<(), Status> {
        let Self { daemon, pod } = self;
        match call {
            Call::Run => *pod = daemon.run(request(daemon)).await?,
            Call::Create(name, command) => {
                let request = container(pod, name, command);
                daemon.runtime.create_container(request).await?;
            }
            Call::Start(name) => {
                let container_id = daemon.container(name).await?;
                let request = v1::StartContainerRequest { container_id };
                daemon.runtime.start_container(request).await?;
            }
            Call::Ended(_) => {}
            Call::Stop(name) => {
                let request = v1::StopContainerRequest {
                    container_id: daemon.container(name).await?,
                    timeout: 30,
                };
                daemon.runtime.stop_container(request).await?;
            }
            Call::Remove(name) => {
                let container_id = daemon.container(name).await?;
                let request = v1::RemoveContainerRequest { container_id };
                daemon.runtime.remove_container(request).await?;
            }
            Call::StopPod => daemon.stop_pod(pod).await?,
            Call::RemovePod => daemon.remove_pod(pod).await?,
        }
        Ok(())
    }

    async fn until_ended(&mut self, name: &str) {
        let end = std::time::Instant::now() + common::PATIENCE;
        let exited =
            |world: World| matches!(world.containers.get(name), Some(Container::Exited(_)));
        while !self.world().await.is_ok_and(exited) {
            assert!(std::time::Instant::now() < end, "{}", self.daemon.log());
        }
    }

    /// Waits until CRI shows one of these worlds; `None` if the daemon dies meanwhile.
    async fn until(&mut self, expected: &[World], when: &str) -> Option<World> {
        let end = std::time::Instant::now() + common::PATIENCE;
        loop {
            match self.world().await {
                Ok(world) if expected.contains(&world) => return Some(world),
                Ok(world) => assert!(
                    std::time::Instant::now() < end,
                    "{when}: it shows {world:?}, and not one of {expected:#?}\n{}",
                    self.daemon.log()
                ),
                Err(_) if self.daemon.dies().await => return None,
                Err(error) => panic!("{when}: {error}\n{}", self.daemon.log()),
            }
            tokio::task::yield_now().await;
        }
    }

    async fn world(&mut self) -> Result<World, Status> {
        let pods = v1::ListPodSandboxRequest::default();
        let pods = self.daemon.runtime.list_pod_sandbox(pods).await?;
        let pods = pods.into_inner().items;
        assert!(pods.len() <= 1, "{pods:?}");
        let mut world = World {
            pod: pods.first().map(|pod| pod.state == 0),
            ..World::default()
        };
        if let Some(pod) = pods.first() {
            self.pod = pod.id.clone();
        }
        let containers = v1::ListContainersRequest::default();
        let containers = self.daemon.runtime.list_containers(containers).await?;
        for container in containers.into_inner().containers {
            let request = v1::ContainerStatusRequest {
                container_id: container.id,
                verbose: false,
            };
            let answer = self.daemon.runtime.container_status(request).await;
            let status = match answer {
                Ok(answer) => answer.into_inner().status.unwrap(),
                // Gone since the list.
                Err(status) if status.code() == Code::NotFound => continue,
                Err(status) => return Err(status),
            };
            let state = match status.state {
                0 => Container::Created,
                1 => Container::Running,
                2 => Container::Exited(status.exit_code),
                other => panic!("state {other}"),
            };
            let name = status.metadata.unwrap().name;
            assert_eq!(world.containers.insert(name, state), None, "twice");
        }
        Ok(world)
    }
}

/// One pod's life; the daemon dies as `death` says, and the next ones, too, if `again`. Whether it
/// died at all.
async fn live(death: Death, again: bool) -> Option<bool> {
    let mut node = Node::start(death).await?;
    let mut world = World::default();
    let mut died = false;
    for &call in CALLS {
        let when = format!("{death:?} ({call:?})");
        let allowed = loop {
            match node.call(call).await {
                Ok(()) => {
                    if let Some(reached) = node.until(&world.after(call), &when).await {
                        break reached;
                    }
                }
                Err(_) if node.daemon.dies().await => {}
                // What was not answered may have been done, and be seen to be while the daemon catches
                // up with the guest.
                Err(error) if died && error.code() == Code::FailedPrecondition => {
                    let reached = node.until(&world.after(call), &when).await;
                    break reached.expect("no second death");
                }
                Err(error) => panic!("{when}: {error}\n{}", node.daemon.log()),
            }
            // It has died in the call, or right after.
            assert!(!died, "{when}: it died twice\n{}", node.daemon.log());
            died = true;
            let allowed = world.after_death_in(call);
            let now = settled(&mut node, &allowed, again, &when).await;
            let done = world.after(call).contains(&now);
            world = now.clone();
            if done {
                break now;
            }
        };
        world = allowed;
    }
    let writes = node.daemon.end_and_check().await;
    let log = std::fs::read_to_string(writes.log.join("ends.log")).unwrap();
    let said: Vec<_> = log
        .lines()
        .filter_map(|l| l.splitn(4, ' ').nth(3))
        .collect();
    assert_eq!(said, ["all of it"], "{death:?}: {log}");
    assert_empty(&writes.database).await;
    Some(died)
}

/// Starts the next daemon, and the next if it is to die, too, until one shows what it may.
async fn settled(node: &mut Node, allowed: &[World], again: bool, when: &str) -> World {
    if again {
        // Each makes one write and dies; one that lives has nothing to write, until the next call.
        let mut rests = false;
        for _ in 0..MOST_DEATHS {
            node.daemon.start_daemon_that(Death::At(1)).await;
            if node.until(allowed, when).await.is_some() && node.daemon.rests().await {
                node.daemon.kill_daemon().await;
                rests = true;
                break;
            }
        }
        assert!(
            rests,
            "{when}: {MOST_DEATHS} daemons had something to write"
        );
    }
    node.daemon.start_daemon_that(Death::Never).await;
    let shown = node.until(allowed, when).await;
    shown.unwrap_or_else(|| panic!("{when}: it died\n{}", node.daemon.log()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_may_die_at_every_write() {
    // A life without a death says how many writes there are.
    let Some(mut node) = Node::start(Death::Never).await else {
        return;
    };
    for &call in CALLS {
        node.call(call).await.unwrap();
        if let Call::Ended(name) = call {
            node.until_ended(name).await;
        }
    }
    let writes = node.daemon.writes();
    node.daemon.end_and_check().await;
    // One for each call that changes a record and more for the pod's own.
    assert!(writes.len() > 2 * CALLS.len(), "only {writes:#?}");

    let deaths = (1..=writes.len() as u64).flat_map(|number| {
        [
            (Death::Before(number), false),
            (Death::At(number), false),
            (Death::At(number), true),
        ]
    });
    let lives = deaths.map(|(death, again)| tokio::spawn(live(death, again)));
    let died = futures::stream::iter(lives)
        .buffer_unordered(AT_ONCE)
        .fold(0, async |died, life| {
            died + usize::from(life.unwrap().unwrap())
        })
        .await;
    // The last write may be made just before the daemon is ended.
    assert!(died + 3 >= 3 * writes.len(), "only {died} died");
    println!("the daemon died {died} times, at {} writes", writes.len());
}

fn request(daemon: &Daemon) -> v1::RunPodSandboxRequest {
    let mut request = daemon.request("p");
    request.config.as_mut().unwrap().log_directory = daemon.logs().display().to_string();
    request
}

fn container(pod: &str, name: &str, command: &[&str]) -> v1::CreateContainerRequest {
    v1::CreateContainerRequest {
        pod_sandbox_id: pod.to_owned(),
        config: Some(v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata {
                name: name.to_owned(),
                attempt: 0,
            }),
            image: Some(v1::ImageSpec {
                image: "one".to_owned(),
                ..Default::default()
            }),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            log_path: format!("{name}.log"),
            ..Default::default()
        }),
        sandbox_config: None,
    }
}

/// An image, as a pull has left it.
async fn fill(daemon: &Daemon) {
    let paths = &daemon.config.paths;
    std::fs::create_dir_all(paths.layers()).unwrap();
    let diff_id = Digest::of(b"layer");
    let file = paths.layers().join(format!("{}.erofs", diff_id.hex()));
    std::fs::write(file, b"layer").unwrap();
    let image = ImageRecord {
        id: Digest::of(b"one").to_string(),
        listed: true,
        repo_tags: vec!["docker.io/library/one:latest".to_owned()],
        repo_digests: Vec::new(),
        config: ImageConfig::default(),
        layers: vec![LayerRecord {
            digest: diff_id.clone(),
            diff_id,
            blob_size: 5,
            opaque_root: false,
            implicit_dirs: Vec::new(),
            file_size: 5,
        }],
        size: 10,
        pulled_at: 0,
        config_file: String::new(),
    };
    let records = Records::open(&paths.database()).unwrap();
    let images = Table::<ImageRecord>::open(records.database()).unwrap();
    images.put(image).await.unwrap();
}

/// No record of the pod or its containers is left.
async fn assert_empty(database: &Path) {
    let records = Records::open(database).unwrap();
    assert!(records.sandboxes.is_empty() && records.containers.is_empty());
    let holds = Table::<HoldRecord>::open(records.database()).unwrap();
    assert!(holds.is_empty(), "{:?}", holds.list());
}
