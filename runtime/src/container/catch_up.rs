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
    records::{ContainerRecord, ContainerState},
    sandbox::Pod,
    task::blocking,
};

const DEADLINE: Duration = Duration::from_secs(20);
/// The exit code of a container nobody saw end.
const LOST: i32 = 255;

/// Brings records and guest together, for a pod that was there before this daemon. May be repeated.
pub(super) async fn catch_up(app: &Arc<App>, pod: &Arc<Pod>) -> Result<(), ContainerError> {
    let records: Vec<_> = app
        .records
        .containers
        .list()
        .into_iter()
        .filter(|record| record.meta.sandbox_id == pod.id)
        .collect();
    let disks = records.iter().flat_map(|record| record.meta.disks());
    pod.disks.lock().await.extend(disks);
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
    for id in guest.into_keys() {
        tracing::warn!(
            container = id,
            pod = pod.id,
            "the guest has a container without a record"
        );
        let request = DeleteContainerRequest {
            container_id: id,
            release_disks: Vec::new(),
        };
        pod.agent
            .call("delete a container", DEADLINE, |mut agent| async move {
                agent.delete_container(request).await
            })
            .await?;
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
        app.records
            .containers
            .update(id, move |record| {
                record.status.started_at = at;
                if record.status.state == ContainerState::Created {
                    record.status.state = ContainerState::Running;
                }
            })
            .await?;
    }
    let (checkpoints, container) = (app.containers.checkpoints.clone(), id.clone());
    let checkpoint =
        blocking(move || Ok::<_, ContainerError>(checkpoints.load(&container)?)).await?;
    let live = app.containers.live(id);
    // At a second try it may be carried already.
    if live.pump().is_none() && !checkpoint.is_some_and(|checkpoint| checkpoint.ended) {
        follow(app, pod, record, true).await?;
    }
    if phase == Phase::Exited && live.begin_ending() {
        let exit = guest.exit.unwrap_or_else(lost);
        let (app, id) = (Arc::clone(app), id.clone());
        tokio::spawn(async move { ended(&app, &id, exit).await });
    }
    Ok(())
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
