//! What happens to a pod's containers, as its agent tells it: one stream per pod, and after a
//! restart of the daemon first a look at how things stand.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bulkhead_proto::agent::{
    ContainerState as InGuest, DeleteContainerRequest, Event, EventsRequest, Exit,
    ListContainersRequest, Phase, event::What,
};
use tokio::sync::watch;

use super::{
    ContainerError,
    remove::dismantle,
    start::{self, follow, record_exit},
};
use crate::{
    app::App,
    error::chain,
    records::{ContainerRecord, ContainerState},
    sandbox::{Pod, now_ns},
    task::blocking,
};

const DEADLINE: Duration = Duration::from_secs(20);
/// Between two tries to reach the agent.
const RETRY: Duration = Duration::from_millis(500);
/// How long an exit waits for the last output to be in the log, so that who sees "exited" can
/// read the whole log.
const DRAIN: Duration = Duration::from_secs(10);
/// The exit code of a container nobody saw end.
const LOST: i32 = 255;

/// Follows the pod's events until the pod is gone.
pub(super) fn watch(app: &Arc<App>, pod: &Arc<Pod>) {
    let mut over = pod.over();
    let (app, pod) = (Arc::clone(app), Arc::clone(pod));
    tokio::spawn(async move {
        let mut next = 0;
        loop {
            tokio::select! {
                () = stream(&app, &pod, &mut next) => {}
                _over = over.wait_for(|over| *over) => return,
            }
            // The connection broke; the channel makes a new one.
            if pause(&mut over).await {
                return;
            }
        }
    });
}

/// Waits before the next try; true if the pod is gone meanwhile.
async fn pause(over: &mut watch::Receiver<bool>) -> bool {
    tokio::time::timeout(RETRY, over.wait_for(|over| *over))
        .await
        .is_ok()
}

async fn stream(app: &Arc<App>, pod: &Pod, next: &mut u64) {
    let mut client = pod.agent.client();
    let request = EventsRequest {
        from_sequence: *next,
    };
    let mut events = match client.events(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => {
            tracing::debug!(pod = pod.id, %status, "the pod's events cannot be read");
            return;
        }
    };
    loop {
        match events.message().await {
            Ok(Some(event)) => {
                *next = event.sequence.saturating_add(1);
                handle(app, pod, event);
            }
            Ok(None) => return,
            Err(status) => {
                tracing::debug!(pod = pod.id, %status, "the pod's events broke off");
                return;
            }
        }
    }
}

fn handle(app: &Arc<App>, pod: &Pod, event: Event) {
    // A guest speaks for its own containers only, and for those that have come up.
    let own = app
        .records
        .containers
        .get(&event.container_id)
        .filter(|record| {
            record.meta.sandbox_id == pod.id && record.status.state != ContainerState::Creating
        });
    let Some(record) = own else {
        return;
    };
    let live = app.containers.live(&record.meta.id);
    match event.what {
        // However often a guest says so: a container ends once, and one task sees to that.
        Some(What::Exited(exit)) if live.begin_ending() => {
            let app = Arc::clone(app);
            tokio::spawn(async move { ended(&app, &record.meta.id, exit).await });
        }
        Some(What::Oom(_)) if live.may_log_oom() => tracing::info!(
            container = record.meta.id,
            pod = pod.id,
            "the kernel killed a process of the container: it reached its memory limit"
        ),
        Some(What::Exited(_) | What::Oom(_)) | None => {}
    }
}

async fn ended(app: &Arc<App>, id: &str, exit: Exit) {
    if let Some(pump) = app.containers.live(id).pump() {
        pump.ended(DRAIN).await;
    }
    start::ended(app, id, exit).await;
}

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
