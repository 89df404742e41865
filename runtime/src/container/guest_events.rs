//! What happens to a pod's containers, as its agent reports it: one stream per pod.

use std::{ops::ControlFlow, sync::Arc, time::Duration};

use bulkhead_proto::agent::{Event, EventsRequest, Exit, event::What};

use super::start;
use crate::{app::App, records::ContainerState, sandbox::Pod};

/// How long an exit waits for the last output to be in the log, so that who sees "exited" can
/// read the whole log.
const DRAIN: Duration = Duration::from_secs(10);

/// Follows the pod's events until the pod is gone.
pub(super) fn watch(app: &Arc<App>, pod: &Arc<Pod>) {
    let (app, pod) = (Arc::clone(app), Arc::clone(pod));
    tokio::spawn(async move {
        let (app, pod) = (&app, &pod);
        let stream = |next| async move { ControlFlow::Continue(stream(app, pod, next).await) };
        pod.follow(0, stream).await;
    });
}

/// Handles events from the one with this number on; gives the number of the first that did not come.
async fn stream(app: &Arc<App>, pod: &Pod, mut next: u64) -> u64 {
    let mut client = pod.agent.client();
    let request = EventsRequest {
        from_sequence: next,
    };
    let mut events = match client.events(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => {
            tracing::debug!(pod = pod.id, %status, "the pod's events cannot be read");
            return next;
        }
    };
    loop {
        match events.message().await {
            Ok(Some(event)) => {
                next = event.sequence.saturating_add(1);
                handle(app, pod, event);
            }
            Ok(None) => return next,
            Err(status) => {
                tracing::debug!(pod = pod.id, %status, "the pod's events broke off");
                return next;
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
            live.note_exit(exit);
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

/// The last output goes first, then the end is recorded.
pub(super) async fn ended(app: &Arc<App>, id: &str, exit: Exit) {
    if let Some(pump) = app.containers.live(id).pump() {
        pump.ended(DRAIN).await;
    }
    start::ended(app, id, exit).await;
}
