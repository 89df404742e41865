//! The daemon's start: pods of the last daemon that still run are taken up again, those that ended
//! meanwhile are marked so, what was half made is undone, and what no record owns is removed.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bulkhead_proto::agent::HelloRequest;
use tokio::task::JoinHandle;

use super::{
    Pod, growth, guest_clock, monitor, names, oom_score,
    release::{self, Extent},
    resize,
    settle::{settle_later, settle_surely},
    stop::stop_in_turn,
};
use crate::{
    agent,
    app::App,
    cgroup, container,
    error::chain,
    id::is_id,
    machine::{self, Process},
    records::{SandboxRecord, SandboxState},
};

/// For a guest whose pod is to be stopped to say what its containers did meanwhile.
const CATCH_UP_DEADLINE: Duration = Duration::from_secs(30);
/// How long the socket waits for what the last daemon left to be cleaned up.
const SETTLE_FIRST: Duration = Duration::from_secs(5);
/// A guest under load answers late and is no worse for it; this is only for the log.
const HELLO_DEADLINE: Duration = Duration::from_secs(30);

/// Brings memory and host into line with the records. Runs before the socket is open.
pub async fn recover(app: &Arc<App>) {
    tokio::spawn(guest_clock::watch_host(Arc::downgrade(app)));
    let records = app.records.sandboxes.list();
    {
        let mut reserved = app.pods.reserved();
        for record in &records {
            if let Err(error) = reserved.take_name(&names::of_record(record), &record.id) {
                tracing::warn!(pod = %record.id, "{error}");
            }
            if let Some(uid) = record.uid() {
                reserved.keep_uid(uid, &record.id);
            }
        }
    }
    // Before there are new pods, all that no record knows is left over. Its processes go before the
    // first new pod can get the user id of one.
    let strays = strays(app, &records).await;
    end_strays(app, &strays.ids).await;
    let settling: Vec<_> = records
        .iter()
        .filter_map(|record| recover_one(app, record))
        .collect();
    let rest = {
        let app = Arc::clone(app);
        async move {
            sweep(&app, strays).await;
            look_after_networks(&app).await;
            for task in settling {
                // A panic in it is in the log.
                let _ended = task.await;
            }
        }
    };
    // Mostly all is done in no time. A CNI plugin that is slow, or one whose own pod is to be
    // started, keeps nobody from being served: the tasks go on.
    let rest = tokio::spawn(rest);
    if tokio::time::timeout(SETTLE_FIRST, rest).await.is_err() {
        tracing::info!("what the last daemon left is still being cleaned up; serving meanwhile");
    }
}

/// Takes a pod up again, or begins to bring it to its end: the task that does.
fn recover_one(app: &Arc<App>, record: &Arc<SandboxRecord>) -> Option<JoinHandle<()>> {
    let id = record.id.as_str();
    match record.state {
        SandboxState::Released => return None,
        // Its RunPodSandbox was never answered: nobody knows of it.
        SandboxState::Creating => {
            tracing::info!(pod = %id, "undoing a start that the last daemon did not finish");
            return Some(finish(app, id, Extent::Whole));
        }
        SandboxState::NotReady | SandboxState::Ready => {}
    }
    match record.process().map_or(Ok(None), Process::find) {
        Ok(Some(process)) => {
            let pod = take_up(app, record, process);
            if record.state == SandboxState::NotReady {
                return Some(finish_stop(app, pod));
            }
            // Not waited for: one pod that is slow to answer keeps no other from being served.
            let app = Arc::clone(app);
            tokio::spawn(async move {
                guest_clock::keep(&app, &pod);
                say_hello(&pod).await;
                container::pod_ready(&app, &pod).await;
                resize::follow_containers(&app, &pod);
            });
            None
        }
        // It has ended while nobody looked, or is stopped and was not given back whole.
        Ok(None) => Some(finish(app, id, Extent::AllButDirectory)),
        Err(error) => {
            tracing::error!(pod = %id, "cannot look for its process: {error}");
            None
        }
    }
}

/// Brings a pod to its end; what fails is tried again later.
fn finish(app: &Arc<App>, id: &str, extent: Extent) -> JoinHandle<()> {
    let (app, id) = (Arc::clone(app), id.to_owned());
    tokio::spawn(async move {
        let _turn = app.pods.turn(&id).await;
        // A failure is in the log, and tried again.
        let _later = settle_surely(&app, &id, extent).await;
    })
}

/// Stops a pod that the last daemon was stopping: its containers have output and exit codes, its
/// guest has unwritten data like those of any other.
fn finish_stop(app: &Arc<App>, pod: Arc<Pod>) -> JoinHandle<()> {
    let app = Arc::clone(app);
    tokio::spawn(async move {
        let _turn = app.pods.turn(&pod.id).await;
        let ready = container::pod_ready(&app, &pod);
        if tokio::time::timeout(CATCH_UP_DEADLINE, ready)
            .await
            .is_err()
        {
            tracing::warn!(pod = %pod.id, "stopped as it is: it does not answer");
        }
        if let Err(error) = stop_in_turn(&app, &pod.id).await {
            tracing::warn!(pod = %pod.id, "not stopped: {}", chain(&error));
            settle_later(&app, &pod.id, Extent::Whole);
        }
    })
}

fn take_up(app: &Arc<App>, record: &SandboxRecord, process: Process) -> Arc<Pod> {
    let machine = machine::of_record(record, &app.config.paths);
    let agent = agent::connect_lazily(&machine.agent());
    let pod = Pod::new(record.id.clone(), agent, machine, Arc::new(process));
    app.pods.insert(Arc::clone(&pod));
    // An earlier release's VMs have the daemon's.
    oom_score::fit(app, &pod);
    monitor::watch(app, &pod);
    growth::follow(app, &pod);
    pod
}

async fn say_hello(pod: &Pod) {
    let hello = pod
        .agent
        .call("say hello", HELLO_DEADLINE, |mut client| async move {
            client.hello(HelloRequest {}).await
        });
    match hello.await {
        Ok(hello) => tracing::info!(
            pod = %pod.id, agent = hello.version, kernel = hello.kernel_release, "taken up again"
        ),
        Err(error) => tracing::warn!(
            pod = %pod.id, "runs, but does not answer yet: {}", chain(&error)
        ),
    }
}

/// What no record owns: of a database that was moved away, of a record that cannot be read, or of a
/// start that failed between making and recording (which is a bug). A pod's directories are the
/// last to be released, so they name all that can be left; what other daemons have on this host is
/// not touched.
#[derive(Default)]
struct Strays {
    /// Ids that have a directory.
    ids: HashSet<String>,
    /// Ids that have a network.
    networks: Vec<String>,
}

async fn strays(app: &Arc<App>, records: &[Arc<SandboxRecord>]) -> Strays {
    let known: HashSet<String> = records.iter().map(|record| record.id.clone()).collect();
    let networks = app.network.ids().await.unwrap_or_else(|error| {
        tracing::warn!("the networks of this node are not known: {}", chain(&error));
        Vec::new()
    });
    let networks = networks
        .into_iter()
        .filter(|id| !known.contains(id))
        .collect();
    let bases = bases(app);
    let ids = tokio::task::spawn_blocking(move || {
        let all = bases.iter().flat_map(|base| ids_in(base));
        all.filter(|id| !known.contains(id)).collect()
    });
    Strays {
        ids: ids.await.unwrap_or_default(),
        networks,
    }
}

fn bases(app: &App) -> [PathBuf; 2] {
    let paths = &app.config.paths;
    [paths.run_dir.join("pods"), paths.state_dir.join("pods")]
}

/// Ends what runs of the strays.
async fn end_strays(app: &App, ids: &HashSet<String>) {
    if ids.is_empty() {
        return;
    }
    let (root, ids) = (app.config.cgroup.root.clone(), ids.clone());
    let ended = tokio::task::spawn_blocking(move || {
        for path in cgroup::find(&root, &ids) {
            tracing::warn!(cgroup = %path.display(), "removing a cgroup no record owns");
            if let Err(error) = cgroup::remove(&path) {
                tracing::warn!("{}", chain(&error));
            }
        }
    });
    if ended.await.is_err() {
        tracing::warn!("the sweep of cgroups was cut short");
    }
}

/// Removes the rest of the strays.
async fn sweep(app: &App, strays: Strays) {
    let Strays { ids, networks } = strays;
    let bases = bases(app);
    let swept = tokio::task::spawn_blocking(move || {
        for path in bases
            .iter()
            .flat_map(|base| ids.iter().map(|id| base.join(id)))
        {
            tracing::warn!(path = %path.display(), "removing a directory no record owns");
            if let Err(error) = release::remove_dir(&path) {
                tracing::warn!("{}", chain(&error));
            }
        }
    });
    if swept.await.is_err() {
        tracing::warn!("the sweep of directories was cut short");
    }
    app.network.sweep(&networks).await;
}

/// Has the CNI plugins free what is of no pod, and say whether the pods that run have what they had.
async fn look_after_networks(app: &App) {
    let with_network = || {
        let mut records = app.records.sandboxes.list();
        records.retain(|record| record.netns().is_some());
        records
    };
    let ids = || with_network().iter().map(|r| r.id.clone()).collect();
    app.network.collect(ids).await;
    for record in with_network() {
        let runs = || app.pods.ready(&record.id).is_ok();
        if let Some(netns) = record.netns().filter(|_| runs())
            && let Err(error) = app.network.check(&record.id, &record.config, netns).await
            // One that was stopped meanwhile is not missed.
            && runs()
        {
            tracing::warn!(
                pod = %record.id, "the pod's network is not as the CNI plugins made it: {}",
                chain(&error)
            );
        }
    }
}

fn ids_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| is_id(name)).collect()
}
