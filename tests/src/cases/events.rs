//! GetContainerEvents, as a kubelet that follows events needs it.

use bulkhead_proto::cri::{
    ContainerEventResponse, ContainerEventType, ContainerState, GetEventsRequest, PodSandboxState,
    PodSandboxStatusRequest,
};
use tonic::Streaming;

use super::BUSYBOX;
use crate::{
    Failure, Outcome, check,
    cri::{PATIENCE, pod, script},
    suite::{Context, Test},
    test,
};

pub(super) fn tests() -> Vec<Test> {
    vec![test!(
        "events",
        a_pods_life_is_told_in_order_with_its_statuses
    )]
}

async fn next(
    events: &mut Streaming<ContainerEventResponse>,
) -> Result<ContainerEventResponse, Failure> {
    let message = tokio::time::timeout(PATIENCE, events.message()).await??;
    message.ok_or_else(|| "the stream of events ended".into())
}

async fn a_pods_life_is_told_in_order_with_its_statuses(context: &mut Context) -> Outcome {
    use ContainerEventType::{
        ContainerCreatedEvent as Created, ContainerDeletedEvent as Deleted,
        ContainerStartedEvent as Started, ContainerStoppedEvent as Stopped,
    };
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let mut runtime = cri.runtime.clone();
    let answer = runtime.get_container_events(GetEventsRequest {}).await?;
    let mut events = answer.into_inner();

    let config = pod("events");
    let id = cri.run_pod(config.clone()).await?;
    let made = cri
        .run(&id, &config, script("short", BUSYBOX, "exit 3"))
        .await?;
    cri.exited(&made).await?;
    let request = PodSandboxStatusRequest {
        pod_sandbox_id: id.clone(),
        verbose: false,
    };
    let status = runtime.pod_sandbox_status(request).await?.into_inner();
    check!(
        status.timestamp > 0
            && status.containers_statuses.len() == 1
            && status.containers_statuses[0].id == made,
        "{status:?}"
    );
    cri.remove(&made).await?;
    cri.remove_pod(&id).await?;

    let mut last = 0;
    for (kind, whose) in [
        (Created, &id),
        (Started, &id),
        (Created, &made),
        (Started, &made),
        (Stopped, &made),
        (Deleted, &made),
        (Stopped, &id),
        (Deleted, &id),
    ] {
        let event = next(&mut events).await?;
        check!(
            event.container_event_type() == kind && event.container_id == *whose,
            "{kind:?} of {whose} was to come, but: {event:?}"
        );
        check!(event.created_at >= last, "back in time: {event:?}");
        last = event.created_at;
        let sandbox = event.pod_sandbox_status.clone().unwrap_or_default();
        check!(
            sandbox.id == id && sandbox.metadata == config.metadata,
            "{event:?}"
        );
        let ready = sandbox.state() == PodSandboxState::SandboxReady;
        check!(
            ready != (whose == &id && kind != Created && kind != Started),
            "{event:?}"
        );
        let container = event.containers_statuses.first();
        let there = whose == &made && kind != Deleted;
        check!(container.is_some() == there, "{event:?}");
        if let Some(container) = container {
            let state = match kind {
                Created => ContainerState::ContainerCreated,
                Started => ContainerState::ContainerRunning,
                _ => ContainerState::ContainerExited,
            };
            // A short process may have ended before its start is told.
            check!(
                container.state() == state
                    || (kind == Started && container.state() == ContainerState::ContainerExited),
                "{event:?}"
            );
            check!(kind != Stopped || container.exit_code == 3, "{event:?}");
        }
    }
    Ok(())
}
