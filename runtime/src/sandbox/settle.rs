//! The one way in which a pod without a live machine comes to its end, whatever led there: a stop, a
//! process that ended by itself, a start that failed, a removal, a daemon that was killed in the
//! middle of any of them. Nothing of it runs -> how it ended is on record -> every exit of a container is on
//! record, and subscribers know -> what it held on the host is given back -> the record is final.
//!
//! Every step may be repeated, and each is done before the next is begun; so a daemon that dies
//! between two of them, or a disk that is full for a while, loses nothing.

use std::{sync::Arc, time::Duration};

use bulkhead_proto::cri::ContainerEventType;

use super::{
    SandboxError, ending, names,
    release::{self, Extent},
};
use crate::{
    app::App,
    container,
    error::chain,
    records::{SandboxRecord, SandboxState},
    status,
    task::Pauses,
};

/// Between two tries: the first soon, for what was busy, and no more than this for what is broken.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Brings a pod to its end. The caller has its turn.
///
/// # Errors
/// The first thing that failed; what is left to do is on record, and can be done later.
async fn settle(app: &Arc<App>, id: &str, extent: Extent) -> Result<(), SandboxError> {
    let Some(record) = app.records.sandboxes.get(id) else {
        return Ok(());
    };
    if record.state == SandboxState::Released {
        return Ok(());
    }
    app.pods.remove(id);
    if let Err(error) = release::end_processes(app, &record).await {
        if record.state == SandboxState::Creating {
            show(app, id).await?;
        }
        return Err(error);
    }
    if record.state != SandboxState::Creating {
        note_end(app, &record).await?;
    }
    give_back(app, id, extent).await
}

/// A start that cannot be undone is shown as a pod that is not ready, so that its name can be seen to
/// be taken, and the kubelet stops and removes it.
async fn show(app: &Arc<App>, id: &str) -> Result<(), SandboxError> {
    let show = |record: &mut SandboxRecord| record.state = SandboxState::NotReady;
    app.records.sandboxes.update(id, show).await?;
    Ok(())
}

/// The pod's end and its containers' go on record, and are told.
async fn note_end(app: &Arc<App>, record: &SandboxRecord) -> Result<(), SandboxError> {
    let id = &record.id;
    let exit = match &record.exit {
        Some(exit) => exit.clone(),
        None => ending::of_pod(app, record).await,
    };
    let why = format!("the pod ended ({}): {}", exit.reason, exit.message);
    if record.exit.is_none() || record.state != SandboxState::NotReady {
        let kept = exit.clone();
        let update = app.records.sandboxes.update(id, move |record| {
            record.state = SandboxState::NotReady;
            record.exit.get_or_insert(kept);
        });
        update.await?;
        ending::log(id, &exit);
    }
    let ended = container::pod_gone(app, id, &why).await;
    ended.map_err(|error| SandboxError::containers(id, error))?;
    // Once: what is settled again, for something that could not be given back, has no process any
    // more.
    if record.has_process()
        && let Some(record) = app.records.sandboxes.get(id)
    {
        status::sandbox_changed(app, ContainerEventType::ContainerStoppedEvent, &record);
    }
    Ok(())
}

/// Gives back what the pod holds. A pod that never came up is forgotten with that; of another the
/// record stays until it is removed. What cannot be given back stays on record, on a pod that is
/// shown as not ready.
async fn give_back(app: &Arc<App>, id: &str, extent: Extent) -> Result<(), SandboxError> {
    let Some(record) = app.records.sandboxes.get(id) else {
        return Ok(());
    };
    let (left, failed) = release::release(app, &record, extent).await;
    if record.state == SandboxState::Creating && left.is_empty() {
        app.records.sandboxes.remove(id).await?;
        app.pods
            .reserved()
            .free_name(&names::of_record(&record), id);
    } else {
        let state = match left.is_empty() {
            true => SandboxState::Released,
            false => SandboxState::NotReady,
        };
        if (state, &left) != (record.state, &record.resources) {
            let left = left.clone();
            let update = app.records.sandboxes.update(id, move |record| {
                record.state = state;
                record.resources = left;
            });
            update.await?;
        }
    }
    // Not before the record says so: a user id that is free is another pod's at once.
    if let Some(uid) = record.uid()
        && !release::has_uid(&left)
    {
        app.pods.reserved().free_uid(uid, id);
    }
    failed.map_or(Ok(()), Err)
}

/// [`settle`] now, and if it fails, again until it succeeds. The caller has the pod's turn.
///
/// # Errors
/// That of the first try.
pub(super) async fn settle_surely(
    app: &Arc<App>,
    id: &str,
    extent: Extent,
) -> Result<(), SandboxError> {
    let settled = settle(app, id, extent).await;
    if let Err(error) = &settled {
        tracing::warn!(pod = %id, "not settled yet, tried again: {}", chain(error));
        settle_later(app, id, extent);
    }
    settled
}

/// [`settle`], again until it succeeds. One task per pod does so; a second call changes nothing.
pub(super) fn settle_later(app: &Arc<App>, id: &str, extent: Extent) {
    if !app.pods.begin_settling(id) {
        return;
    }
    let (app, id) = (Arc::clone(app), id.to_owned());
    tokio::spawn(async move {
        let task = Settling { app, id };
        let (app, id) = (&task.app, &task.id);
        let mut pauses = Pauses::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            pauses.pause().await;
            let _turn = app.pods.turn(id).await;
            match settle(app, id, extent).await {
                Ok(()) => return,
                Err(error) => tracing::warn!(pod = %id, "not settled yet: {}", chain(&error)),
            }
        }
    });
}

/// A task that settles a pod; another may when it is dropped.
struct Settling {
    app: Arc<App>,
    id: String,
}

impl Drop for Settling {
    fn drop(&mut self) {
        self.app.pods.end_settling(&self.id);
    }
}
