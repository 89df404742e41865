//! A pod without a memory limit gets memory when its guest wants it, and gives back what it does not
//! need: the guest's demands, followed for as long as the pod runs. How large a VM can be is `sizing`'s
//! to say, how it is resized `resize`'s.

use std::{ops::ControlFlow, sync::Arc, time::Duration};

use bulkhead_proto::agent::{MemoryDemand, WatchMemoryRequest};
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Streaming};

use super::{Change, Pod, fit};
use crate::{app::App, error::chain};

/// Memory goes back when it was not needed for so long. It also bounds how often a guest can have its
/// VM resized: between two such times it can only grow, in steps.
const QUIET: Duration = Duration::from_secs(20);
/// What a guest wants is rounded up to this: a block of memory, as Linux adds it.
const STEP_MIB: u64 = 128;

/// Follows what the pod's guest wants until the pod is gone; a pod with a limit has what it gets.
pub(super) fn follow(app: &Arc<App>, pod: &Arc<Pod>) {
    let record = app.records.sandboxes.get(&pod.id);
    let limits = record.and_then(|record| record.shape.limits);
    if !limits.is_some_and(|limits| limits.elastic) {
        return;
    }
    let (app, pod) = (Arc::clone(app), Arc::clone(pod));
    tokio::spawn(async move { pod.follow((), |()| stream(&app, &pod)).await });
}

async fn stream(app: &Arc<App>, pod: &Arc<Pod>) -> ControlFlow<()> {
    let mut client = pod.agent.client();
    let mut demands = match client.watch_memory(WatchMemoryRequest {}).await {
        Ok(answer) => answer.into_inner(),
        // An agent of an older release.
        Err(status) if status.code() == Code::Unimplemented => return ControlFlow::Break(()),
        Err(status) => {
            tracing::debug!(pod = pod.id, %status, "the guest's demands for memory cannot be read");
            return ControlFlow::Continue(());
        }
    };
    let mut changed = Instant::now();
    while let Some(mut wanted) = next(pod, &mut demands).await {
        while wanted < pod.demand_mib() {
            // What it wants meanwhile counts.
            match timeout_at(changed + QUIET, next(pod, &mut demands)).await {
                Ok(Some(newer)) => wanted = newer,
                Ok(None) => return ControlFlow::Continue(()),
                Err(_quiet) => break,
            }
        }
        pod.demand(wanted);
        if let Err(error) = fit(app, pod, Change::None).await {
            tracing::warn!(
                pod = pod.id,
                wanted_mib = wanted,
                error = chain(&error),
                "the pod does not get all the memory it wants"
            );
        }
        changed = Instant::now();
    }
    ControlFlow::Continue(())
}

/// The next demand, MiB; 0 is none.
async fn next(pod: &Pod, demands: &mut Streaming<MemoryDemand>) -> Option<u64> {
    loop {
        match demands.message().await {
            Ok(Some(MemoryDemand { bytes: 0 })) => {}
            Ok(Some(MemoryDemand { bytes })) => {
                let mib = bytes.div_ceil(1 << 20);
                return Some(mib.checked_next_multiple_of(STEP_MIB).unwrap_or(u64::MAX));
            }
            Ok(None) => return None,
            Err(status) => {
                tracing::debug!(pod = pod.id, %status, "the guest's demands for memory broke off");
                return None;
            }
        }
    }
}
