//! Containers: their life in a pod's guest, their output, their statistics. One file per CRI
//! call. What a container is stands in its record; what the guest does to it comes as events.
//!
//! Not here: pods (`sandbox`), the files of logs (`logs`), the OCI spec (`oci`), images.

mod attach;
mod create;
mod disks;
mod error;
mod events;
mod exec;
mod find;
mod live;
mod remove;
mod start;
mod stats;
mod status;
mod stop;
mod update;

use std::{collections::HashSet, sync::Arc, time::Duration};

use bulkhead_proto::agent::Exit;
use futures::future::join_all;

pub use attach::follow_output;
pub use create::create;
pub(crate) use disks::implied_directories;
pub use error::ContainerError;
pub use exec::{Output, exec_sync, running};
pub use live::Containers;
pub use remove::remove;
pub use start::start;
pub use stats::{list as list_stats, one as stats, pressure, to_cri};
pub(crate) use status::statuses_of;
pub use status::{list, status};
pub use stop::stop;
pub use update::{reopen_log, update};

use crate::{
    app::App,
    error::chain,
    records::{ContainerRecord, ContainerState},
    sandbox::{Pod, now_ns},
    task::Pauses,
    volumes::guest,
};

/// For the last output of a guest that is gone to be written.
const DRAIN: Duration = Duration::from_secs(5);
/// Between two tries to take a pod's containers over.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// As for a death by SIGKILL: the guest's end is the container's.
const KILLED: i32 = 137;
const SIGKILL: u32 = 9;

/// A pod's guest is there: after RunPodSandbox, and after a restart of the daemon for each pod
/// that still runs (its containers' events, exits and output are then caught up with, as soon as it
/// answers).
pub async fn pod_ready(app: &Arc<App>, pod: &Arc<Pod>) {
    let mut over = pod.over();
    let mut pauses = Pauses::new(FIRST_PAUSE, LONGEST_PAUSE);
    // A new pod has none, and is not asked.
    while !of_pod(app, &pod.id).is_empty() {
        let Err(error) = events::catch_up(app, pod).await else {
            break;
        };
        let error = chain(&error);
        tracing::warn!(
            pod = pod.id,
            error,
            "the pod's containers cannot be taken over yet"
        );
        tokio::select! {
            () = pauses.pause() => {}
            _over = over.wait_for(|over| *over) => return,
        }
    }
    events::watch(app, pod);
    guest::resume(app, pod).await;
}

/// A pod is being stopped: end its containers, in bounded time, and see their output to its end.
/// The guest still runs (unless it has died); after this it is powered off.
pub async fn pod_stopping(app: &Arc<App>, sandbox_id: &str) {
    join_all(
        of_pod(app, sandbox_id)
            .into_iter()
            .map(|record| async move {
                let id = &record.meta.id;
                if let Err(error) = stop(app, id, 0).await {
                    tracing::warn!(
                        container = id,
                        error = chain(&error),
                        "not stopped before its pod"
                    );
                }
                if let Some(pump) = app.containers.live(id).pump() {
                    pump.ended(DRAIN).await;
                }
            }),
    )
    .await;
}

/// A pod's guest is gone, stopped or not: containers still counted as running have ended.
///
/// # Errors
/// If an end cannot be recorded; the others are. May be repeated.
pub async fn pod_gone(app: &Arc<App>, sandbox_id: &str, why: &str) -> Result<(), ContainerError> {
    app.containers.samples.forget(sandbox_id);
    let ends = of_pod(app, sandbox_id)
        .into_iter()
        .map(|record| async move {
            let id = &record.meta.id;
            let live = app.containers.live(id);
            if let Some(pump) = live.pump() {
                pump.end();
                pump.ended(DRAIN).await;
            }
            // What the guest said, and could not be recorded, is better than what is guessed.
            let (exit, message) = match live.exit() {
                Some(exit) => (exit, String::new()),
                None => (killed_with_pod(), why.to_owned()),
            };
            start::record_exit(app, id, exit, message).await
        });
    join_all(ends).await.into_iter().collect()
}

fn killed_with_pod() -> Exit {
    Exit {
        code: KILLED,
        signal: SIGKILL,
        oom_killed: false,
        finished_at_unix_ns: now_ns(),
    }
}

/// A pod's record is about to go: remove its containers' records and what they hold (images).
///
/// # Errors
/// If one cannot be removed whole; the others are. May be repeated.
pub async fn pod_removed(app: &Arc<App>, sandbox_id: &str) -> Result<(), ContainerError> {
    let mut removed = Ok(());
    for record in of_pod(app, sandbox_id) {
        let this = remove::dismantle(app, &record).await;
        removed = removed.and(this);
    }
    removed
}

/// At the daemon's start, after the pods are recovered: notes which disks their VMs have, and takes
/// away what no pod's or container's record owns any more.
pub async fn recover(app: &Arc<App>) {
    for pod in app.pods.all() {
        let of_pod = of_pod(app, &pod.id);
        let disks = of_pod.iter().flat_map(|record| record.meta.disks());
        pod.disks.lock().await.extend(disks);
    }
    for record in app.records.containers.list() {
        let pod = app.records.sandboxes.get(&record.meta.sandbox_id);
        let orphan = pod.is_none()
            || (record.status.state == ContainerState::Creating
                && app.pods.get(&record.meta.sandbox_id).is_none());
        if orphan && let Err(error) = remove::dismantle(app, &record).await {
            let error = chain(&error);
            tracing::warn!(
                container = record.meta.id,
                error,
                "an orphan is not removed whole"
            );
        }
    }
    let known: HashSet<String> = app
        .records
        .containers
        .list()
        .iter()
        .map(|record| record.meta.id.clone())
        .collect();
    for holder in app.images.holders() {
        if !known.contains(guest::container_of(&holder))
            && let Err(error) = app.images.release(&holder).await
        {
            tracing::warn!(
                holder,
                error = chain(&error),
                "an image stays held by nobody"
            );
        }
    }
    let checkpoints = app.containers.checkpoints.clone();
    let swept = tokio::task::spawn_blocking(move || {
        for container in checkpoints.list()? {
            if !known.contains(&container) {
                checkpoints.remove(&container)?;
            }
        }
        Ok::<_, crate::logs::LogError>(())
    });
    if let Ok(Err(error)) = swept.await {
        tracing::warn!(error = chain(&error), "log checkpoints of nobody stay");
    }
}

/// The records of a pod's containers.
pub(crate) fn of_pod(app: &App, sandbox_id: &str) -> Vec<Arc<ContainerRecord>> {
    let mut records = app.records.containers.list();
    records.retain(|record| record.meta.sandbox_id == sandbox_id);
    records
}

#[cfg(test)]
mod tests;
