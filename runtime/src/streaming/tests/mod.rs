//! The server with a fake agent, which answers sessions as the real one does, over the same socket
//! and framing. What the real agent does is tested with it (`agent/tests`, and end to
//! end).

mod bulk;
mod fake_agent;
mod hostile;
mod sessions;

use std::{path::Path, sync::Arc, time::Duration};

use bulkhead_proto::cri as v1;
use tempfile::TempDir;
use tokio::sync::watch;

use self::fake_agent::FakeAgent;
use super::*;
use crate::{
    agent,
    app::App,
    config::Config,
    machine::{
        Machine as _, Process,
        vm::{JailDir, VirtualMachine},
    },
    records::{ContainerRecord, ContainerState, testing},
    sandbox::Pod,
};

const POD: &str = "00000000000000000000000000000001";
const RUNNING: &str = "0000000000000000000000000000000a";
const DEAD: &str = "0000000000000000000000000000000b";

/// A daemon's streaming server.
struct Node {
    app: Arc<App>,
    guest: FakeAgent,
    stop: watch::Sender<bool>,
    server: tokio::task::JoinHandle<()>,
    _dir: TempDir,
}

impl Node {
    async fn start() -> Self {
        Self::start_with("").await
    }

    /// With further lines of the configuration's section.
    async fn start_with(streaming: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let text = format!(
            "[paths]\nstate_dir = {:?}\nrun_dir = {:?}\nsocket = {:?}\n[streaming]\n{streaming}\n",
            at("state"),
            at("run"),
            at("run/socket"),
        );
        std::fs::create_dir_all(dir.path().join("state")).unwrap();
        let config = Config::parse(Path::new("test.toml"), &text).unwrap();
        std::fs::create_dir_all(config.paths.layers()).unwrap();
        let jail = JailDir::of_pod(dir.path());
        let guest = FakeAgent::start(&jail.vsock());
        let machine = Arc::new(VirtualMachine::of_pod(dir.path(), true));
        let app = App::open(config).unwrap();
        app.records
            .sandboxes
            .put(testing::sandbox(POD))
            .await
            .unwrap();
        for (id, state) in [
            (RUNNING, ContainerState::Running),
            (DEAD, ContainerState::Exited),
        ] {
            app.records
                .containers
                .put(container(id, state))
                .await
                .unwrap();
        }
        let agent = agent::connect_lazily(&machine.agent());
        let process = Process::adopt(std::process::id().cast_signed()).unwrap();
        let pod = Pod::new(POD.to_owned(), agent, machine, Arc::new(process));
        app.pods.insert(pod);
        let (stop, stopped) = watch::channel(false);
        let listening = listen(&app).await.unwrap();
        let server = tokio::spawn(listening.serve(Arc::clone(&app), stopped));
        Self {
            app,
            guest,
            stop,
            server,
            _dir: dir,
        }
    }

    fn exec(&self, command: &[&str], stdin: bool) -> String {
        let request = v1::ExecRequest {
            container_id: RUNNING.to_owned(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            stdin,
            stdout: true,
            stderr: true,
            tty: false,
        };
        exec(&self.app, request).unwrap()
    }

    fn forward(&self) -> String {
        let request = v1::PortForwardRequest {
            pod_sandbox_id: POD.to_owned(),
            port: vec![],
        };
        port_forward(&self.app, request).unwrap()
    }

    /// Ends the server; nothing of any client may be left then.
    async fn end(self) {
        self.guest.wait_idle().await;
        self.stop.send_replace(true);
        self.server.await.unwrap();
    }
}

/// No test takes this long.
async fn limit<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(300), work)
        .await
        .expect("the test takes too long")
}

fn container(id: &str, state: ContainerState) -> ContainerRecord {
    let mut record = testing::container(id, POD);
    record.status.state = state;
    record
}
