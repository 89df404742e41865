//! The timer of unfinished pulls' layers: each goes when its time is up, whether or not anything is
//! pulled again.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    time::{Instant, MissedTickBehavior, interval_at},
};

use crate::store::Store;

/// How often at least, and at most, is looked.
const SLOWEST: Duration = Duration::from_secs(600);
const FASTEST: Duration = Duration::from_secs(1);

/// Starts it, where there is a runtime; it ends with the store.
pub(crate) fn spawn(store: &Arc<Store>) {
    if let Ok(runtime) = Handle::try_current() {
        let period = (store.keeps_parts_for() / 4).clamp(FASTEST, SLOWEST);
        runtime.spawn(run(Arc::downgrade(store), period));
    }
}

async fn run(store: Weak<Store>, period: Duration) {
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(store) = store.upgrade() else {
            return;
        };
        if let Err(error) = store.prune_parts(false).await {
            tracing::warn!(
                error = %bulkhead_common::chain(&error),
                "layers of unfinished pulls cannot be removed; they are looked at again later"
            );
        }
    }
}
