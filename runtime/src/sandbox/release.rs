//! Giving back what a pod holds on the host: the recorded list in reverse. Every step may be
//! repeated; one that fails does not keep the others from being tried, and stays on record.

use std::{io, path::Path, sync::Arc, time::Duration};

use super::{SandboxError, names};
use crate::{
    app::App,
    cgroup,
    records::{Resource, SandboxRecord, SandboxState, VmmProcess},
    vmm::Process,
    volumes::share::{self, Share},
};

/// From SIGKILL to the end: the kernel frees a guest's memory first.
const KILL_DEADLINE: Duration = Duration::from_secs(20);

/// Releases all a pod holds and records it as released. On failure what is left stays on record,
/// and the first error is given.
pub(super) async fn release(app: &Arc<App>, id: &str) -> Result<(), SandboxError> {
    let Some(record) = app.records.sandboxes.get(id) else {
        return Ok(());
    };
    let mut left = Vec::new();
    let mut first = None;
    for resource in record.resources.iter().rev() {
        if let Err(error) = release_one(app, &record, resource).await {
            tracing::warn!(pod = %id, ?resource, "not released: {}", crate::error::chain(&error));
            left.insert(0, resource.clone());
            first.get_or_insert(error);
        }
    }
    let update = app.records.sandboxes.update(id, move |record| {
        record.state = match left.is_empty() {
            true => SandboxState::Released,
            false => SandboxState::NotReady,
        };
        record.resources = left;
    });
    update.await?;
    match first {
        None => Ok(()),
        Some(error) => Err(error),
    }
}

/// Undoes a start that failed. A pod that cannot be undone whole stays, as not ready, so that the
/// kubelet stops and removes it.
pub(super) async fn undo(app: &Arc<App>, id: &str, name: &str) {
    if release(app, id).await.is_err() {
        return;
    }
    app.pods.reserved().free_name(name, id);
    if let Err(error) = app.records.sandboxes.remove(id).await {
        tracing::warn!(pod = %id, "the record of a failed start stays: {error}");
    }
}

/// [`undo`], the name taken from the record.
pub(super) async fn undo_known(app: &Arc<App>, id: &str) {
    if let Some(record) = app.records.sandboxes.get(id) {
        undo(app, id, &name_of(&record)).await;
    }
}

/// The name a record reserves.
pub(super) fn name_of(record: &SandboxRecord) -> String {
    names::name_of(&record.config.metadata.clone().unwrap_or_default())
}

async fn release_one(
    app: &Arc<App>,
    record: &SandboxRecord,
    resource: &Resource,
) -> Result<(), SandboxError> {
    match resource {
        Resource::Uid { uid } => {
            app.pods.reserved().free_uid(*uid);
            Ok(())
        }
        Resource::Directory { path } => {
            let path = path.clone();
            blocking(move || remove_dir(&path)).await
        }
        Resource::Share { pod } => {
            let share = Share::of_pod(pod);
            blocking(move || Ok(share.destroy()?)).await
        }
        Resource::Cgroup { path } => {
            let path = path.clone();
            blocking(move || Ok(cgroup::remove(&path)?)).await
        }
        Resource::Network { netns } => Ok(app
            .network
            .teardown(&record.id, &record.config, netns)
            .await?),
        // One that was never recorded dies with its cgroup, the next step.
        Resource::Vmm { process: None } => Ok(()),
        Resource::Vmm {
            process: Some(identity),
        } => kill(*identity).await,
    }
}

/// Kills a pod's process and sees it gone.
pub(super) async fn kill(identity: VmmProcess) -> Result<(), SandboxError> {
    let os = |source| SandboxError::Os {
        action: format!("kill the pod's process {}", identity.pid),
        source,
    };
    let Some(process) = Process::find(identity).map_err(os)? else {
        return Ok(());
    };
    process.kill().map_err(os)?;
    tokio::time::timeout(KILL_DEADLINE, process.wait())
        .await
        .map_err(|_| os(io::ErrorKind::TimedOut.into()))?
        .map_err(os)
}

/// Removes a directory with all in it; one that is gone is no error. Blocks. (The standard library
/// does not follow links on the way, which matters: a VMM writes in its directory.) What is mounted
/// in it is the host's: that is detached first, and nothing is removed while any is left.
pub(super) fn remove_dir(path: &Path) -> Result<(), SandboxError> {
    share::detach_all(path)?;
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(SandboxError::Os {
            action: format!("remove the directory {}", path.display()),
            source: e,
        }),
        _ => Ok(()),
    }
}

async fn blocking<F>(work: F) -> Result<(), SandboxError>
where
    F: FnOnce() -> Result<(), SandboxError> + Send + 'static,
{
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| SandboxError::Ending)?
}
