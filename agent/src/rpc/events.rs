//! Events of containers, and how much memory the guest wants, as they happen.

use std::pin::Pin;
use std::sync::Arc;

use bulkhead_proto::agent;
use futures::{Stream, StreamExt, stream};
use tokio::sync::watch;
use tonic::Status;

use super::container::exit;
use crate::container::Containers;
use crate::container::event_log::EventKind;

/// The guest's demands for memory, the latest at once.
pub(super) type MemoryDemands =
    Pin<Box<dyn Stream<Item = Result<agent::MemoryDemand, Status>> + Send>>;

/// How much memory the guest wants, whenever that changes; those that nobody waited for are skipped.
pub(super) fn memory_demands(mut demand: watch::Receiver<u64>) -> MemoryDemands {
    demand.mark_changed();
    Box::pin(stream::unfold(demand, |mut demand| async move {
        // The sender lives as long as the agent.
        demand.changed().await.ok()?;
        let bytes = *demand.borrow_and_update();
        Some((Ok(agent::MemoryDemand { bytes }), demand))
    }))
}

/// Events from a sequence number on, for as long as the daemon listens.
pub fn events(
    containers: Arc<Containers>,
    from: u64,
) -> Pin<Box<dyn Stream<Item = Result<agent::Event, Status>> + Send>> {
    let events = stream::unfold((containers, from), |(containers, from)| async move {
        let event = containers.events.next(from).await;
        Some((event.clone(), (containers, event.sequence + 1)))
    });
    Box::pin(events.map(|event| {
        let what = match event.kind {
            EventKind::Exited(end) => agent::event::What::Exited(exit(&end)),
            EventKind::Oom => agent::event::What::Oom(agent::Oom {}),
        };
        Ok(agent::Event {
            sequence: event.sequence,
            container_id: event.container,
            what: Some(what),
        })
    }))
}
