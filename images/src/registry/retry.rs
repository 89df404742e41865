//! How often a request is tried, and how long is waited: for bytes, and between tries.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use super::error::RegistryError;

/// How often and how long registries are tried.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// Time for one TCP and TLS handshake.
    pub connect_timeout: Duration,
    /// Time without a byte after which a request fails for good.
    pub stall_timeout: Duration,
    /// Tries of one request at the last host in the list (a mirror gets two).
    pub tries: u32,
    /// Wait before the second try; doubled for each further one.
    pub backoff: Duration,
    /// The longest wait, and the longest `Retry-After` that is waited for.
    pub longest_wait: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(15),
            stall_timeout: Duration::from_secs(60),
            tries: 5,
            backoff: Duration::from_millis(500),
            longest_wait: Duration::from_secs(30),
        }
    }
}

/// The time a request may still go without progress. Waiting is counted, working is not: a slow
/// disk behind a download is no fault of the registry.
#[derive(Debug)]
pub(super) struct StallTimer {
    limit: Duration,
    waited: Duration,
    since_progress: u64,
}

/// Nothing came in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Late {
    /// On this connection; a new one may do better.
    Silent(Duration),
    /// The limit is reached.
    Stalled(Duration),
}

/// Fewer bytes than this are no progress: a registry that sends a byte now and then is down.
const LEAST_PROGRESS: u64 = 4096;

impl StallTimer {
    pub(super) fn new(policy: &RetryPolicy) -> Self {
        Self {
            limit: policy.stall_timeout,
            waited: Duration::ZERO,
            since_progress: 0,
        }
    }

    /// Waits for `work`: at most a third of the limit on one connection (which may be dead without
    /// this side knowing), and at most the limit in all since the last progress.
    pub(super) async fn wait<F: Future>(&mut self, work: F) -> Result<F::Output, Late> {
        let left = self.limit.saturating_sub(self.waited);
        let at_most = left.min(self.limit / 3).max(Duration::from_millis(1));
        let start = Instant::now();
        let result = tokio::time::timeout(at_most, work).await;
        self.waited = self.waited.saturating_add(start.elapsed());
        match result {
            Ok(output) => Ok(output),
            Err(_) if self.waited >= self.limit => Err(Late::Stalled(self.limit)),
            Err(_) => Err(Late::Silent(at_most)),
        }
    }

    /// Some bytes came. Gives `Stalled` if they were too few for too long.
    pub(super) fn progress(&mut self, bytes: u64) -> Result<(), Late> {
        self.since_progress = self.since_progress.saturating_add(bytes);
        if self.since_progress >= LEAST_PROGRESS {
            self.since_progress = 0;
            self.waited = Duration::ZERO;
        } else if self.waited >= self.limit {
            return Err(Late::Stalled(self.limit));
        }
        Ok(())
    }
}

impl Late {
    pub(super) fn into_error(self, host: String, what: &str) -> RegistryError {
        let what = what.to_owned();
        match self {
            Self::Silent(time) => RegistryError::Silent {
                host,
                what,
                seconds: seconds(time),
                tries: 1,
            },
            Self::Stalled(time) => RegistryError::Stalled {
                host,
                what,
                seconds: seconds(time),
            },
        }
    }
}

fn seconds(time: Duration) -> u64 {
    time.as_secs().max(1)
}

/// Waits before the next try, `done` being made: doubled each time, or as long as the registry
/// asks. `false` if it asks for longer than anybody should wait.
pub(super) async fn back_off(policy: &RetryPolicy, done: u32, error: &RegistryError) -> bool {
    let doubled = policy
        .backoff
        .saturating_mul(1 << done.saturating_sub(1).min(16));
    let wait = match error.retry_after() {
        Some(asked) if asked > policy.longest_wait => return false,
        Some(asked) => asked.max(policy.backoff),
        None => doubled.min(policy.longest_wait),
    };
    tracing::debug!(
        error = %bulkhead_common::chain(error), wait_ms = wait.as_millis(), "the request is tried again"
    );
    bulkhead_common::back_off(wait).await;
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(milliseconds: u64) -> RetryPolicy {
        RetryPolicy {
            stall_timeout: Duration::from_millis(milliseconds),
            ..RetryPolicy::default()
        }
    }

    #[tokio::test]
    async fn silence_on_connections_adds_up_to_a_stall() {
        let mut timer = StallTimer::new(&policy(60));
        let mut silent = 0;
        while let Err(Late::Silent(_)) = timer.wait(std::future::pending::<()>()).await {
            silent += 1;
        }
        assert!((1..=4).contains(&silent), "{silent}");
    }

    #[tokio::test]
    async fn a_trickle_is_no_progress() {
        let mut timer = StallTimer::new(&policy(20));
        timer.waited = Duration::from_millis(30);
        assert!(matches!(timer.progress(100), Err(Late::Stalled(_))));
        assert_eq!(timer.progress(LEAST_PROGRESS), Ok(()));
        assert_eq!(timer.waited, Duration::ZERO);
    }
}
