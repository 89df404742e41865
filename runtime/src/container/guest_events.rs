//! What happens to a pod's containers, as its agent reports it: one stream per pod.

use std::{sync::Arc, time::Duration};

use bulkhead_proto::agent::{Event, EventsRequest, Exit, event::What};
use tokio::sync::watch;

use super::start;
use crate::{app::App, records::ContainerState, sandbox::Pod};

/// Between two tries to reach the agent.
const RETRY: Duration = Duration::from_millis(500);
/// How long an exit waits for the last output to be in the log, so that who sees "exited" can
/// read the whole log.
const DRAIN: Duration = Duration::from_secs(10);

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
