//! Background work: run to completion even if the caller goes away, serialized per key, or retried
//! with growing pauses.

use std::{
    any::Any,
    cell::RefCell,
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, Once},
    time::Duration,
};

use bulkhead_common::{back_off, lock};
use futures::FutureExt as _;
use tokio::sync::OwnedMutexGuard;
use tonic::Code;

use crate::error::Grpc;

/// Work that did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// Its task was torn down.
    #[error("the request was given up, because the daemon is ending")]
    Ending,
    /// It panicked: a bug.
    #[error("a bug in Bulkhead ended the request: panic at {place}: {message}; please report it")]
    Panicked {
        /// Source file, line and column.
        place: String,
        /// What it said.
        message: String,
    },
}

impl Grpc for TaskError {
    fn code(&self) -> Code {
        match self {
            Self::Ending => Code::Unavailable,
            Self::Panicked { .. } => Code::Internal,
        }
    }
}

thread_local! {
    /// Where the last panic of this thread was.
    static PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Does `work` in a task of its own, to its end even if the caller is dropped.
///
/// # Errors
/// The work's own; a [`TaskError`] if it panicked or the daemon is ending.
pub async fn detached<T, E>(
    work: impl Future<Output = Result<T, E>> + Send + 'static,
) -> Result<T, E>
where
    T: Send + 'static,
    E: From<TaskError> + Send + 'static,
{
    note_places();
    // A panic is met on the thread that it is on, which alone knows its place.
    let caught = AssertUnwindSafe(work).catch_unwind();
    let task = tokio::spawn(caught.map(|done| done.map_err(|payload| panicked(&*payload))));
    match task.await {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => Err(panic.into()),
        Err(_aborted) => Err(TaskError::Ending.into()),
    }
}

/// Does `work`, which blocks, on a thread where it may.
///
/// # Errors
/// As [`detached`].
pub async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<TaskError> + Send + 'static,
{
    note_places();
    let caught = move || {
        std::panic::catch_unwind(AssertUnwindSafe(work)).map_err(|payload| panicked(&*payload))
    };
    match tokio::task::spawn_blocking(caught).await {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => Err(panic.into()),
        Err(_aborted) => Err(TaskError::Ending.into()),
    }
}

/// Adds to the panic hook, once, that each thread remembers where it panicked.
fn note_places() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let place = panic
                .location()
                .map_or_else(String::new, ToString::to_string);
            tracing::error!(place, "panic: {}", words(panic.payload()));
            PLACE.with_borrow_mut(|last| *last = place);
            hook(panic);
        }));
    });
}

fn panicked(payload: &(dyn Any + Send)) -> TaskError {
    TaskError::Panicked {
        place: match PLACE.with_borrow_mut(std::mem::take) {
            // It was on another thread, which the work waited for.
            place if place.is_empty() => "a place that is in the log".to_owned(),
            place => place,
        },
        message: words(payload).to_owned(),
    }
}

fn words(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("(not a text)")
}

/// Pauses between tries, each twice as long as the one before.
#[derive(Debug, Clone, Copy)]
pub struct Pauses {
    next: Duration,
    longest: Duration,
}

impl Pauses {
    /// From the first to the longest.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self {
            next: first,
            longest,
        }
    }

    /// Lets the next pause pass.
    pub async fn pause(&mut self) {
        let now = self.next;
        self.next = now.saturating_mul(2).min(self.longest);
        back_off(now).await;
    }
}

/// One at a time, for each key. A key that nobody has or waits for takes no memory.
#[derive(Debug, Default)]
pub struct KeyedMutex(Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>);

impl KeyedMutex {
    /// The turn for a key; given back when dropped.
    pub async fn lock(&self, key: &str) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = lock(&self.0);
            // One that only the map has is nobody's.
            turns.retain(|other, turn| other == key || Arc::strong_count(turn) > 1);
            Arc::clone(turns.entry(key.to_owned()).or_default())
        };
        turn.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_reported_with_its_place() {
        async fn fails() -> Result<(), TaskError> {
            let empty: Vec<u8> = Vec::new();
            assert!(!empty.is_empty(), "there is nothing in it");
            Ok(())
        }
        for error in [
            detached(fails()).await.unwrap_err(),
            blocking::<(), TaskError>(|| panic!("there is nothing in it"))
                .await
                .unwrap_err(),
        ] {
            let text = error.to_string();
            assert!(text.contains("task.rs:"), "{text}");
            assert!(text.contains("there is nothing in it"), "{text}");
            assert_eq!(error.code(), Code::Internal);
        }
    }

    #[tokio::test]
    async fn a_task_that_is_torn_down_is_no_panic() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let handle = runtime.handle().clone();
        let (began, begun) = tokio::sync::oneshot::channel();
        let waiting = handle.spawn(async move {
            let work = async move {
                began.send(()).unwrap();
                std::future::pending::<Result<(), TaskError>>().await
            };
            detached(work).await
        });
        begun.await.unwrap();
        runtime.shutdown_background();
        // Its caller is torn down with it, or sees that it was.
        if let Ok(result) = waiting.await {
            assert!(matches!(result, Err(TaskError::Ending)));
        }
    }

    #[tokio::test]
    async fn one_at_a_time_for_a_key_and_nothing_kept() {
        let turns = KeyedMutex::default();
        let first = turns.lock("a").await;
        let _other = turns.lock("b").await;
        let mut second = std::pin::pin!(turns.lock("a"));
        assert!(second.as_mut().now_or_never().is_none());
        drop(first);
        drop(second.await);
        let _more = turns.lock("c").await;
        assert!(!lock(&turns.0).contains_key("a"));
    }
}
