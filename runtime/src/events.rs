//! What happens to pods and containers, for GetContainerEvents (KEP-3386): each event carries the
//! pod's status and that of all its containers as they are right after it, so that a kubelet needs
//! to ask nothing.
//!
//! Subscribers read from one ring of bounded length. One that falls further behind is told so and
//! let go: what it missed it finds by listing. Without subscribers an event costs nothing.

use std::sync::{Arc, Mutex, PoisonError};

use bulkhead_proto::cri::{
    ContainerEventResponse, ContainerEventType, ContainerStatus, PodSandboxStatus,
};
use tokio::sync::broadcast::{self, error::RecvError};
use tonic::Code;

use crate::{
    app::App,
    container,
    error::Grpc,
    records::{ContainerRecord, SandboxRecord},
    sandbox::{self, now_ns},
};

/// How many events a subscriber may be behind.
const BEHIND: usize = 512;

/// Where events go.
#[derive(Debug)]
pub struct Events {
    /// `None` once the daemon ends.
    sender: Mutex<Option<broadcast::Sender<Arc<ContainerEventResponse>>>>,
}

/// Why a subscriber gets no more events.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// It did not read them.
    #[error(
        "{lost} events were lost because the client read them too slowly (at most {BEHIND} are \
         kept); list pods and containers, and subscribe again"
    )]
    TooSlow {
        /// How many it missed.
        lost: u64,
    },
    /// There will be none.
    #[error("the daemon is ending; subscribe again when it is back")]
    Ending,
}

impl Grpc for EventsError {
    fn code(&self) -> Code {
        match self {
            Self::TooSlow { .. } => Code::ResourceExhausted,
            Self::Ending => Code::Unavailable,
        }
    }
}

impl Default for Events {
    fn default() -> Self {
        Self {
            sender: Mutex::new(Some(broadcast::channel(BEHIND).0)),
        }
    }
}

impl Events {
    /// Events from now on.
    pub fn subscribe(&self) -> Result<Subscriber, EventsError> {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        let receiver = sender.as_ref().ok_or(EventsError::Ending)?.subscribe();
        Ok(Subscriber { receiver })
    }

    /// The daemon ends: subscribers are told, and there are no new ones.
    pub fn close(&self) {
        let mut sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        *sender = None;
    }

    fn wanted(&self) -> bool {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        sender.as_ref().is_some_and(|s| s.receiver_count() > 0)
    }

    fn send(&self, event: ContainerEventResponse) {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = sender.as_ref() {
            // An error says only that the last subscriber has just left.
            let _left = sender.send(Arc::new(event));
        }
    }
}

/// One who wants to know.
#[derive(Debug)]
pub struct Subscriber {
    receiver: broadcast::Receiver<Arc<ContainerEventResponse>>,
}

impl Subscriber {
    /// The next event. After an error there is none.
    pub async fn next(&mut self) -> Result<ContainerEventResponse, EventsError> {
        match self.receiver.recv().await {
            Ok(event) => Ok(ContainerEventResponse::clone(&event)),
            Err(RecvError::Lagged(lost)) => Err(EventsError::TooSlow { lost }),
            Err(RecvError::Closed) => Err(EventsError::Ending),
        }
    }
}

/// Something happened to a container, and its record says so (or is gone).
pub(crate) fn container(app: &App, kind: ContainerEventType, record: &ContainerRecord) {
    if !app.events.wanted() {
        return;
    }
    // A subscriber goes by the pod; without one there is nobody to tell of.
    if let Some(sandbox) = app.records.sandboxes.get(&record.meta.sandbox_id) {
        emit(app, kind, &record.meta.id, &sandbox);
    }
}

/// Something happened to a pod. For its removal the record is that from before.
pub(crate) fn sandbox(app: &App, kind: ContainerEventType, record: &SandboxRecord) {
    if app.events.wanted() {
        emit(app, kind, &record.id, record);
    }
}

fn emit(app: &App, kind: ContainerEventType, id: &str, sandbox: &SandboxRecord) {
    let (pod, containers) = snapshot(app, sandbox);
    app.events.send(ContainerEventResponse {
        container_id: id.to_owned(),
        container_event_type: kind.into(),
        created_at: now_ns(),
        pod_sandbox_status: Some(pod),
        containers_statuses: containers,
    });
}

/// A pod and its containers as the records have them now.
pub(crate) fn snapshot(
    app: &App,
    sandbox: &SandboxRecord,
) -> (PodSandboxStatus, Vec<ContainerStatus>) {
    (
        sandbox::describe(sandbox),
        container::statuses_of(app, &sandbox.id),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: usize) -> ContainerEventResponse {
        ContainerEventResponse {
            container_id: number.to_string(),
            ..Default::default()
        }
    }

    #[tokio::test]
    async fn each_subscriber_gets_every_event_in_order() {
        let events = Events::default();
        assert!(!events.wanted());
        let (mut one, mut two) = (events.subscribe().unwrap(), events.subscribe().unwrap());
        for number in 0..BEHIND {
            events.send(event(number));
        }
        for subscriber in [&mut one, &mut two] {
            for number in 0..BEHIND {
                assert_eq!(subscriber.next().await.unwrap(), event(number));
            }
        }
        drop((one, two));
        assert!(!events.wanted());
    }

    #[tokio::test]
    async fn who_is_too_slow_or_too_late_is_told() {
        let events = Events::default();
        let mut slow = events.subscribe().unwrap();
        for number in 0..BEHIND + 2 {
            events.send(event(number));
        }
        let error = slow.next().await.unwrap_err();
        assert!(matches!(error, EventsError::TooSlow { lost: 2 }), "{error}");
        assert_eq!(error.code(), Code::ResourceExhausted);

        let mut waiting = events.subscribe().unwrap();
        events.close();
        assert!(matches!(waiting.next().await, Err(EventsError::Ending)));
        assert!(matches!(events.subscribe(), Err(EventsError::Ending)));
    }
}
