//! The pause before something is tried again: the one place where time alone is waited for. To wait
//! until something has happened, wait for that.

use std::{future::pending, time::Duration};

/// Lets time pass.
pub async fn back_off(time: Duration) {
    // Nothing completes this; the deadline is the wait.
    let _over = tokio::time::timeout(time, pending::<()>()).await;
}
