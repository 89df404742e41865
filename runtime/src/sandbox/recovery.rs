//! The daemon's start: pods of the last daemon that still run are taken up again, those that ended
//! meanwhile are marked so, what was half made is undone, and what no record owns is removed.

use std::{collections::HashSet, fs, path::Path, sync::Arc, time::Duration};

use bulkhead_proto::agent::HelloRequest;
use tokio::sync::watch;

use super::{Machine, Pod, is_id, release, watch as watcher};
use crate::{
    agent,
    app::App,
    cgroup, container,
    records::{Resource, SandboxRecord, SandboxState},
    vmm::Process,
};

/// A guest under load answers late and is no worse for it; this is only for the log.
const HELLO_DEADLINE: Duration = Duration::from_secs(30);

/// Brings memory and host into line with the records. Runs before the socket is open.
pub async fn recover(app: &Arc<App>) {
    let records = app.records.sandboxes.list();
    {
        let mut reserved = app.pods.reserved();
        for record in &records {
            if let Err(error) = reserved.take_name(&release::name_of(record), &record.id) {
                tracing::warn!(pod = %record.id, "{error}");
            }
            for resource in &record.resources {
                if let Resource::Uid { uid } = resource {
                    reserved.keep_uid(*uid);
                }
            }
        }
    }
    let all = records.iter().map(|record| recover_one(app, record));
    futures::future::join_all(all).await;
    sweep(app).await;
}

async fn recover_one(app: &Arc<App>, record: &SandboxRecord) {
    let id = record.id.as_str();
    match record.state {
        SandboxState::Released => {}
        // Its RunPodSandbox was never answered: nobody knows of it.
        SandboxState::Creating => {
            tracing::info!(pod = %id, "undoing a start that the last daemon did not finish");
            release::undo_known(app, id).await;
        }
        // The last daemon was stopping it, or its VM had ended.
        SandboxState::NotReady => {
            if let Err(error) = release::release(app, id).await {
                tracing::warn!(pod = %id, "not released: {}", crate::error::chain(&error));
            }
        }
        SandboxState::Ready => match process(record) {
            Ok(Some(process)) => take_up(app, record, process).await,
            Ok(None) => {
                let machine = Machine::of_pod(record.machine, &app.config.paths, id);
                let exit = watcher::exit_of_pod(app, id, &machine).await;
                watcher::gone(app, id, &exit).await;
                if let Err(error) = release::release(app, id).await {
                    tracing::warn!(pod = %id, "not released: {}", crate::error::chain(&error));
                }
            }
            Err(error) => tracing::error!(pod = %id, "cannot look for its process: {error}"),
        },
    }
}

fn process(record: &SandboxRecord) -> std::io::Result<Option<Process>> {
    let identity = record.resources.iter().find_map(|resource| match resource {
        Resource::Vmm { process } => *process,
        _ => None,
    });
    identity.map_or(Ok(None), Process::find)
}

async fn take_up(app: &Arc<App>, record: &SandboxRecord, process: Process) {
    let machine = Machine::of_pod(record.machine, &app.config.paths, &record.id);
    let (ended, ended_receiver) = watch::channel(None);
    let pod = Arc::new(Pod {
        id: record.id.clone(),
        agent: agent::connect_lazily(&machine.agent()),
        machine,
        process: Arc::new(process),
        ended: ended_receiver,
    });
    app.pods.insert(Arc::clone(&pod));
    watcher::watch(app, &pod, ended);
    // Not waited for: one pod that is slow to answer keeps no other from being served.
    let app = Arc::clone(app);
    tokio::spawn(async move {
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
                pod = %pod.id, "runs, but does not answer yet: {}", crate::error::chain(&error)
            ),
        }
        container::pod_ready(&app, &pod).await;
    });
}

/// Removes what no record owns: of a database that was moved away, or of a start that failed
/// between making and recording (which is a bug). A pod's directories are the last to be released,
/// so they name all that can be left; what other daemons have on this host is not touched.
async fn sweep(app: &Arc<App>) {
    let known: HashSet<String> = app
        .records
        .sandboxes
        .list()
        .iter()
        .map(|record| record.id.clone())
        .collect();
    let ids: Vec<String> = known.iter().cloned().collect();
    let paths = app.config.paths.clone();
    let root = app.config.cgroup.root.clone();
    let swept = tokio::task::spawn_blocking(move || {
        let bases = [paths.run_dir.join("pods"), paths.state_dir.join("pods")];
        let strays: HashSet<String> = bases
            .iter()
            .flat_map(|base| ids_in(base))
            .filter(|id| !known.contains(id))
            .collect();
        if strays.is_empty() {
            return;
        }
        // Cgroups first: what runs in them uses the directories.
        for path in cgroup::find(&root, &strays) {
            tracing::warn!(cgroup = %path.display(), "removing a cgroup no record owns");
            if let Err(error) = cgroup::remove(&path) {
                tracing::warn!("{}", crate::error::chain(&error));
            }
        }
        for path in bases
            .iter()
            .flat_map(|base| strays.iter().map(|id| base.join(id)))
        {
            tracing::warn!(path = %path.display(), "removing a directory no record owns");
            if let Err(error) = release::remove_dir(&path) {
                tracing::warn!("{}", crate::error::chain(&error));
            }
        }
    });
    if swept.await.is_err() {
        tracing::warn!("the sweep was cut short");
    }
    if let Err(error) = app.network.sweep(&ids).await {
        tracing::warn!(
            "the sweep of networks failed: {}",
            crate::error::chain(&error)
        );
    }
}

fn ids_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| is_id(name)).collect()
}
