//! What happens to all containers of a pod when its guest is there, is about to go, is gone, and when
//! the pod is removed.

use std::{sync::Arc, time::Duration};

use bulkhead_proto::agent::Exit;
use futures::future::join_all;

use super::{ContainerError, catch_up, guest_events, remove, start, stop::stop};
use crate::{
    app::App, clock::now_ns, error::chain, oci::signal::SIGKILL, sandbox::Pod, task::Pauses,
    volumes::pod_volumes,
};

/// For the last output of a guest that is gone to be written.
const DRAIN: Duration = Duration::from_secs(5);
/// Between two tries to take a pod's containers over.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// As for a death by SIGKILL: the guest's end is the container's.
const KILLED: i32 = 137;

/// A pod's guest is there: after RunPodSandbox, and after a restart of the daemon for each pod
/// that still runs. What happened to its containers meanwhile is caught up with, again in the
/// background if that fails at first; events and volumes are followed in any case.
pub async fn pod_ready(app: &Arc<App>, pod: &Arc<Pod>) {
    let caught_up = try_to_catch_up(app, pod).await;
    guest_events::watch(app, pod);
    pod_volumes::resume(app, pod).await;
    if !caught_up {
        let (app, pod) = (Arc::clone(app), Arc::clone(pod));
        tokio::spawn(async move { keep_catching_up(&app, &pod).await });
    }
}

async fn try_to_catch_up(app: &Arc<App>, pod: &Arc<Pod>) -> bool {
    // A new pod has no containers, and is not asked.
    if app.records.containers_of(&pod.id).is_empty() {
        return true;
    }
    let caught_up = catch_up::catch_up(app, pod).await;
    if let Err(error) = &caught_up {
        tracing::warn!(
            pod = pod.id,
            error = chain(error),
            "not all of the pod's containers are taken over yet"
        );
    }
    caught_up.is_ok()
}

async fn keep_catching_up(app: &Arc<App>, pod: &Arc<Pod>) {
    let mut over = pod.over();
    let mut pauses = Pauses::new(FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        tokio::select! {
            () = pauses.pause() => {}
            _over = over.wait_for(|over| *over) => return,
        }
        if try_to_catch_up(app, pod).await {
            return;
        }
    }
}

/// A pod is being stopped: end its containers, in bounded time, and see their output to its end.
/// The guest still runs (unless it has died); after this it is powered off.
pub async fn pod_stopping(app: &Arc<App>, sandbox_id: &str) {
    join_all(
        app.records
            .containers_of(sandbox_id)
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
    let ends = app
        .records
        .containers_of(sandbox_id)
        .into_iter()
        .map(|record| async move {
            let id = &record.meta.id;
            let live = app.containers.live(id);
            let mut said = None;
            if let Some(pump) = live.pump() {
                pump.end();
                said = pump.ended(DRAIN).await.flatten();
            }
            // What the guest said, and is not on record yet, is better than what is guessed.
            let (exit, message) = match live.exit().or(said) {
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
    for record in app.records.containers_of(sandbox_id) {
        let this = remove::dismantle(app, &record).await;
        removed = removed.and(this);
    }
    removed
}
