//! Waiting for what nothing announces. A slow machine is no fault: what goes on in steps is waited for
//! as long as it goes on, one thing as long as any machine may take.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::{Instant, timeout};

use crate::Failure;

/// How long one thing may take, or go without a step. In the emulated host everything takes sixteen
/// times as long, and the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// One turn of waiting for a condition: fails once the deadline has passed.
///
/// # Errors
/// That what was waited for did not come.
pub async fn pause(deadline: Instant, what: &str) -> Result<(), Failure> {
    if Instant::now() >= deadline {
        return Err(format!("waited too long for {what}").into());
    }
    let mut turn = tokio::time::interval(Duration::from_millis(100));
    turn.tick().await;
    turn.tick().await;
    Ok(())
}

/// Waiting for a condition that comes nearer in steps: it fails when no step was made for a while.
#[derive(Debug)]
pub struct Progress<T> {
    seen: Option<T>,
    deadline: Instant,
    patience: Duration,
}

impl<T> Default for Progress<T> {
    fn default() -> Self {
        Self::within(PATIENCE)
    }
}

impl<T> Progress<T> {
    fn within(patience: Duration) -> Self {
        Self {
            seen: None,
            deadline: Instant::now() + patience,
            patience,
        }
    }
}

impl<T: PartialEq> Progress<T> {
    /// One turn: `now` is how far it is, `what` is waited for.
    ///
    /// # Errors
    /// That it has been there for too long.
    pub async fn pause(&mut self, now: T, what: &str) -> Result<(), Failure> {
        if self.seen.as_ref() != Some(&now) {
            self.seen = Some(now);
            self.deadline = Instant::now() + self.patience;
        }
        let turn = pause(self.deadline, what).await;
        turn.map_err(|late| format!("{late}: nothing has come for {:?}", self.patience).into())
    }
}

/// Waits for `work` as long as it counts up in `moved`.
///
/// # Errors
/// Its own, or that it has stopped.
pub async fn while_moving<T, E>(
    what: &str,
    moved: &AtomicU64,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, Failure>
where
    Failure: From<E>,
{
    moving_within(PATIENCE, what, moved, work).await
}

async fn moving_within<T, E>(
    patience: Duration,
    what: &str,
    moved: &AtomicU64,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, Failure>
where
    Failure: From<E>,
{
    let mut work = std::pin::pin!(work);
    let mut before = moved.load(Ordering::Relaxed);
    loop {
        if let Ok(done) = timeout(patience, &mut work).await {
            return Ok(done?);
        }
        let now = moved.load(Ordering::Relaxed);
        if now == before {
            let text = format!("waited too long for {what}: it stopped at {now} for {patience:?}");
            return Err(text.into());
        }
        before = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(400);

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap()
    }

    #[test]
    fn steps_are_waited_for_and_a_stand_still_is_not() {
        runtime().block_on(async {
            let began = Instant::now();
            let mut progress = Progress::within(SHORT);
            for step in 0..10 {
                progress.pause(step, "the end").await.unwrap();
            }
            assert!(began.elapsed() > SHORT);
            let failure = loop {
                if let Err(failure) = progress.pause(9, "the end").await {
                    break failure.to_string();
                }
            };
            assert!(failure.contains("too long for the end"), "{failure}");
        });
    }

    #[test]
    fn work_that_moves_is_waited_for_and_work_that_stands_is_not() {
        runtime().block_on(async {
            let moved = AtomicU64::new(0);
            let work = async {
                let mut turn = tokio::time::interval(SHORT / 2);
                for _ in 0..7 {
                    turn.tick().await;
                    moved.fetch_add(1, Ordering::Relaxed);
                }
                Ok::<_, Failure>(7)
            };
            assert_eq!(moving_within(SHORT, "it", &moved, work).await.unwrap(), 7);
            let stands = std::future::pending::<Result<(), Failure>>();
            let failure = moving_within(SHORT, "it", &moved, stands).await;
            assert!(failure.unwrap_err().to_string().contains("stopped at 7"));
        });
    }
}
