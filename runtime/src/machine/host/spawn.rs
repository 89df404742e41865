//! Starting the agent of a pod on the host: one process, whose configuration is one JSON document
//! on its standard input. It goes into the pod's cgroup and namespaces by itself, before it says
//! that it is ready, and outlives the daemon.

use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
    process::Stdio,
    time::Duration,
};

use bulkhead_contract::host::Pod;
use tokio::{io::AsyncWriteExt as _, process::Command};

use super::{HostDir, HostError};
use crate::machine::Process;

/// The document fits into the pipe; this is for the fork and the exec.
const START_DEADLINE: Duration = Duration::from_secs(20);

/// Makes the agent's directory, which a container's root in a user namespace passes through. Blocks.
pub fn make_dir(dir: &HostDir) -> io::Result<()> {
    std::fs::DirBuilder::new().mode(0o711).create(dir.root())
}

/// Starts an agent. It runs when this returns, and may still fail: it reports when it is ready.
pub async fn spawn(binary: &Path, dir: &HostDir, pod: &Pod) -> Result<Process, HostError> {
    let document = serde_json::to_vec(pod).map_err(|source| HostError::Configure {
        source: source.into(),
    })?;
    let log = OpenOptions::new()
        .append(true)
        .create_new(true)
        .mode(0o600)
        .open(dir.log())
        .map_err(|source| HostError::Os {
            action: "create the agent's log",
            source,
        })?;
    // Not killed with its handle: it outlives the daemon.
    let mut child = Command::new(binary)
        .arg("--host")
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(|source| HostError::Spawn {
            binary: binary.to_owned(),
            source,
        })?;
    let hold = child.id().and_then(|pid| i32::try_from(pid).ok());
    let process = hold
        .ok_or_else(|| io::ErrorKind::NotFound.into())
        .and_then(Process::adopt)
        .map_err(|source| HostError::Os {
            action: "hold the agent's process",
            source,
        });
    let configured = tokio::time::timeout(START_DEADLINE, async {
        let mut stdin = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        stdin.write_all(&document).await?;
        stdin.shutdown().await
    });
    let configured = match configured.await {
        Ok(written) => written.map_err(|source| HostError::Configure { source }),
        Err(_) => Err(HostError::Deadline {
            seconds: START_DEADLINE.as_secs(),
        }),
    };
    if configured.is_err() || process.is_err() {
        // What it may have begun is in the pod's cgroup, which the release of the pod empties.
        let _gone = child.start_kill();
    }
    configured?;
    process
}
