//! What happened to containers, numbered, for daemons that come and go. The last [`KEPT`] are
//! remembered.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use tokio::sync::Notify;

use crate::mutex::lock;
use crate::process::exit::Exit;

/// How many events are remembered.
pub const KEPT: usize = 4096;

/// A kind of event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// The container's first process ended.
    Exited(Exit),
    /// The OOM killer ended a process in it, and it lives on.
    Oom,
}

/// An event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// From 1 on, without gaps.
    pub sequence: u64,
    /// Which container.
    pub container: String,
    /// What happened to it.
    pub kind: EventKind,
}

#[derive(Debug, Default)]
struct Inner {
    events: VecDeque<Event>,
    last: u64,
}

/// The record of events.
#[derive(Debug, Default)]
pub struct EventLog {
    inner: Mutex<Inner>,
    added: Notify,
}

impl EventLog {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    fn push(&self, container: &str, kind: EventKind) {
        let mut inner = self.lock();
        inner.last += 1;
        let event = Event {
            sequence: inner.last,
            container: container.to_owned(),
            kind,
        };
        inner.events.push_back(event);
        if inner.events.len() > KEPT {
            inner.events.pop_front();
        }
        drop(inner);
        self.added.notify_waiters();
    }

    /// A container's first process ended.
    pub fn exited(&self, container: &str, exit: Exit) {
        self.push(container, EventKind::Exited(exit));
    }

    /// The OOM killer ended a process of a container that lives on.
    pub fn oom(&self, container: &str) {
        self.push(container, EventKind::Oom);
    }

    /// The first remembered event with this sequence number or a later one, waited for.
    pub async fn next(&self, from: u64) -> Event {
        loop {
            let added = self.added.notified();
            let found = self
                .lock()
                .events
                .iter()
                .find(|event| event.sequence >= from)
                .cloned();
            match found {
                Some(event) => return event,
                None => added.await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_late_listener_gets_the_remembered_events() {
        let events = EventLog::default();
        for _ in 0..KEPT + 2 {
            events.oom("c");
        }
        assert_eq!(events.next(0).await.sequence, 3);
        assert_eq!(events.next(10).await.sequence, 10);
    }
}
