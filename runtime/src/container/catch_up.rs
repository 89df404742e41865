//! A pod that was there before this daemon: its containers' records are brought into line with what
//! its guest says of them.
use std::{collections::HashMap, sync::Arc, time::Duration};

use bulkhead_proto::agent::{
    ContainerState as InGuest, DeleteContainerRequest, Exit, ListContainersRequest, Phase,
};

use super::{
    ContainerError,
    guest_events::ended,
    remove::dismantle,
    start::{follow, record_exit},
};
use crate::{
    app::App,
    clock::now_ns,
    error::chain,
    id::is_id,
    records::{ContainerRecord, ContainerState},
    sandbox::Pod,
    task::blocking,
};

const DEADLINE: Duration = Duration::from_secs(20);
/// Of containers without a record, at most so many are deleted at one time.
const MOST_UNKNOWN: usize = 1_024;
/// The exit code of a container nobody saw end.
const LOST: i32 = 255;

/// Brings records and guest together, for a pod that was there before this daemon. May be repeated.
///
/// # Errors
/// If the guest does not answer, or the last failure with one of its containers; the others are
/// looked after all the same.
pub(super) async fn catch_up(app: &Arc<App>, pod: &Arc<Pod>) -> Result<(), ContainerError> {
    // What is being made by this daemon is not to be caught up with.
    let records: Vec<_> = app
        .records
        .containers_of(&pod.id)
        .into_iter()
        .filter(|record| !app.containers.is_being_created(record))
        .collect();
    let answer = pod
        .agent
        .call("list the containers", DEADLINE, |mut agent| async move {
            agent.list_containers(ListContainersRequest {}).await
        })
        .await?;
    let mut guest: HashMap<String, InGuest> = answer
        .containers
        .into_iter()
        .map(|state| (state.container_id.clone(), state))
        .collect();
    let mut result = Ok(());
    for record in records {
        let state = guest.remove(&record.meta.id);
        if let Err(error) = reconcile(app, pod, &record, state).await {
            tracing::warn!(
                container = record.meta.id,
                error = chain(&error),
                "the container cannot be taken over whole"
            );
            result = Err(error);
        }
    }
    // One that was made since the list of records was read is not meant.
    guest.retain(|id, _| is_id(id) && app.records.containers.get(id).is_none());
    if !guest.is_empty() {
        let count = guest.len();
        tracing::warn!(
            pod = pod.id,
            count,
            "the guest has containers without a record"
        );
    }
    for id in guest.into_keys().take(MOST_UNKNOWN) {
        let request = DeleteContainerRequest {
            container_id: id,
            release_layers: Vec::new(),
            release_disks: Vec::new(),
        };
        let delete = pod
            .agent
            .call("delete a container", DEADLINE, |mut agent| async move {
                agent.delete_container(request).await
            });
        if let Err(error) = delete.await {
            result = Err(error.into());
        }
    }
    result
}

async fn reconcile(
    app: &Arc<App>,
    pod: &Arc<Pod>,
    record: &Arc<ContainerRecord>,
    guest: Option<InGuest>,
) -> Result<(), ContainerError> {
    let id = &record.meta.id;
    if record.status.state == ContainerState::Creating {
        tracing::info!(container = id, "a creation was cut off: taking it back");
        return dismantle(app, record).await;
    }
    let Some(guest) = guest else {
        if record.status.state != ContainerState::Exited {
            let message = "the guest no longer knows the container".to_owned();
            record_exit(app, id, lost(), message).await?;
        }
        return Ok(());
    };
    let phase = Phase::try_from(guest.phase).unwrap_or(Phase::Exited);
    if phase == Phase::Created {
        return Ok(());
    }
    if record.status.started_at == 0 {
        let at = guest.started_at_unix_ns.max(1);
        let started = move |record: &mut ContainerRecord| record.status.note_start(at);
        app.records.containers.update(id, started).await?;
    }
    let (checkpoints, container) = (app.containers.checkpoints.clone(), id.clone());
    let checkpoint =
        blocking(move || Ok::<_, ContainerError>(checkpoints.load(&container)?)).await?;
    let live = app.containers.live(id);
    // At a second try it may be carried already.
    let followed = match live.pump() {
        None if !checkpoint.is_some_and(|checkpoint| checkpoint.ended) => {
            follow(app, pod, record, true).await
        }
        _ => Ok(()),
    };
    // Its end counts even if its output is not followed.
    if phase == Phase::Exited && live.begin_ending() {
        let exit = guest.exit.unwrap_or_else(lost);
        let (app, id) = (Arc::clone(app), id.clone());
        tokio::spawn(async move { ended(&app, &id, exit).await });
    }
    followed
}

/// An exit nobody saw.
pub(super) fn lost() -> Exit {
    Exit {
        code: LOST,
        signal: 0,
        oom_killed: false,
        finished_at_unix_ns: now_ns(),
    }
}
