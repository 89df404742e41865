//! The bus of GetContainerEvents (KEP-3386): who wants to know of pods and containers, and how far
//! behind each is. What an event says is made in `status`.
//!
//! Subscribers read from one ring of bounded length. One that falls further behind is told so and
//! let go: what it missed it finds by listing. Without subscribers an event costs nothing.

use std::sync::{Arc, Mutex};

use bulkhead_common::lock;
use bulkhead_proto::cri::ContainerEventResponse;
use tokio::sync::broadcast::{self, error::RecvError};
use tonic::Code;

use crate::error::Grpc;

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
        let sender = lock(&self.sender);
        let receiver = sender.as_ref().ok_or(EventsError::Ending)?.subscribe();
        Ok(Subscriber { receiver })
    }

    /// The daemon ends: subscribers are told, and there are no new ones.
    pub fn close(&self) {
        let mut sender = lock(&self.sender);
        *sender = None;
    }

    /// Whether somebody does.
    pub(crate) fn wanted(&self) -> bool {
        let sender = lock(&self.sender);
        sender.as_ref().is_some_and(|s| s.receiver_count() > 0)
    }

    /// Tells all of them.
    pub(crate) fn send(&self, event: ContainerEventResponse) {
        let sender = lock(&self.sender);
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
