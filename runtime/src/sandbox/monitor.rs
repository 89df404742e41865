//! Waiting for the end of a pod's process (its VMM, its agent on the host), which takes its pod out
//! of service, whoever ended it.

use std::sync::Arc;

use super::{Pod, release::Extent, settle::settle_surely};
use crate::app::App;

/// Watches a pod until its process ends, and settles it then.
pub(super) fn watch(app: &Arc<App>, pod: &Arc<Pod>) {
    let (app, pod) = (Arc::clone(app), Arc::clone(pod));
    tokio::spawn(async move {
        if let Err(error) = pod.process.wait().await {
            // Without the wait nobody would notice the end: take it as ended, and end it.
            tracing::error!(pod = %pod.id, "cannot wait for the pod's process: {error}");
            let _gone = pod.process.kill();
        }
        // Out of service at once; who has its turn now will find it so.
        app.pods.remove(&pod.id);
        let _turn = app.pods.turn(&pod.id).await;
        // A failure is in the log, and tried again.
        let _later = settle_surely(&app, &pod.id, Extent::AllButDirectory).await;
    });
}
