//! Ending what runs of a pod, and giving back what it holds on the host: the recorded list in
//! reverse. Every step may be repeated. What cannot be given back does not keep the rest from it, and
//! stays on record.

use std::{io, path::Path, sync::Arc, time::Duration};

use super::SandboxError;
use crate::{
    app::App,
    cgroup,
    error::chain,
    machine::{self, Process},
    records::{Resource, SandboxRecord, VmmProcess},
    task::blocking,
    volumes::share::{self, Share},
};

/// From SIGKILL to the end: the kernel frees a guest's memory first.
const KILL_DEADLINE: Duration = Duration::from_secs(20);

/// How much of a pod is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// All of it.
    Whole,
    /// All but its directory, whose console and logs say why it ended: nobody asked it to, and
    /// nobody has looked yet. StopPodSandbox gives back the rest.
    AllButDirectory,
}

/// Ends all that may still run of a pod, before anything is recorded of its end.
///
/// # Errors
/// If something may still run.
pub(super) async fn end_processes(
    app: &Arc<App>,
    record: &SandboxRecord,
) -> Result<(), SandboxError> {
    let process = record.process();
    if let Some(identity) = process {
        kill(identity).await?;
    }
    // A VM takes its containers with it. On the host they would go on without their agent; and a
    // process that was never recorded is in the pod's cgroup.
    let alone = machine::of_record(record, &app.config.paths).owns_cgroup();
    if let Some(path) = record.cgroup()
        && (!alone || process.is_none())
        && record.has_process()
    {
        let path = path.to_owned();
        blocking(move || Ok::<_, SandboxError>(cgroup::kill(&path)?)).await?;
    }
    Ok(())
}

/// Gives back what a pod holds, nothing of which runs. What is left, in the order it was made, and
/// why the first of it is.
pub(super) async fn release(
    app: &Arc<App>,
    record: &SandboxRecord,
    extent: Extent,
) -> (Vec<Resource>, Option<SandboxError>) {
    let kept = (extent == Extent::AllButDirectory).then(|| app.config.paths.pod(&record.id));
    let mut left = Vec::new();
    let mut first = None;
    for resource in record.resources.iter().rev() {
        let keep = match resource {
            Resource::Directory { path } => kept.as_ref() == Some(path),
            // While a process may live, or files are left that are its user's.
            Resource::Uid { .. } => kept.is_some() || may_live(&left),
            _ => false,
        };
        if keep {
            left.insert(0, resource.clone());
            continue;
        }
        if let Err(error) = release_one(app, record, resource).await {
            tracing::warn!(pod = %record.id, ?resource, "not released: {}", chain(&error));
            left.insert(0, resource.clone());
            first.get_or_insert(error);
        }
    }
    (left, first)
}

/// Whether a pod's user id is among what it holds.
pub(super) fn has_uid(resources: &[Resource]) -> bool {
    let uid = |resource: &Resource| matches!(resource, Resource::Uid { .. });
    resources.iter().any(uid)
}

/// Whether a process of the pod is not known dead, by what is left.
fn may_live(left: &[Resource]) -> bool {
    let process =
        |resource: &Resource| matches!(resource, Resource::Vmm { .. } | Resource::Cgroup { .. });
    left.iter().any(process)
}

async fn release_one(
    app: &Arc<App>,
    record: &SandboxRecord,
    resource: &Resource,
) -> Result<(), SandboxError> {
    match resource {
        // Free when the record says so (`settle`).
        Resource::Uid { .. } => Ok(()),
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
        // It has ended (`end_processes`).
        Resource::Vmm { .. } => Ok(()),
    }
}

/// Kills a pod's process and sees it gone.
async fn kill(identity: VmmProcess) -> Result<(), SandboxError> {
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
