//! Events of containers, as they happen.

use std::pin::Pin;
use std::sync::Arc;

use bulkhead_proto::agent;
use futures::{Stream, StreamExt, stream};
use tonic::Status;

use super::container::exit;
use crate::container::Containers;
use crate::container::event_log::EventKind;

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
