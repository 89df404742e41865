//! The size of a volume in a guest's memory follows that of the kubelet's own file system for it, which
//! the kubelet resizes by remounting it (an emptyDir of a pod that is resized, KEP-6030).
//!
//! It is looked at every two seconds: the kernel tells of a change in its list of mounts only where that
//! was made by mount(2), not by fsconfig(2), and one look is three system calls.

use std::{
    fs::File,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use bulkhead_proto::agent::ResizeVolumeRequest;
use tokio::{task::JoinHandle, time::MissedTickBehavior};
use tonic::Code;

use crate::{
    agent::{Agent, AgentError},
    error::Grpc as _,
};

/// For the agent to resize a volume.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often a size is looked at, and a failure tried again.
const INTERVAL: Duration = Duration::from_secs(2);

/// Ends when dropped.
#[derive(Debug)]
pub struct SizeWatch(JoinHandle<()>);

impl Drop for SizeWatch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl SizeWatch {
    /// Brings the size to the guest, once a container has the volume, and then every change of it.
    /// `path` is the kubelet's file system, of that device.
    pub fn start(agent: Agent, name: String, path: PathBuf, device: u64) -> Self {
        Self(tokio::spawn(async move {
            let mut told = Told::default();
            let mut turns = tokio::time::interval(INTERVAL);
            turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                turns.tick().await;
                if let Some(bytes) = look(&path, device).await {
                    told.bring(&agent, &name, bytes).await;
                }
            }
        }))
    }
}

/// What the guest has.
#[derive(Debug, Default)]
struct Told {
    bytes: Option<u64>,
    /// What it did not take was said once.
    refused: Option<u64>,
}

impl Told {
    async fn bring(&mut self, agent: &Agent, name: &str, bytes: u64) {
        if self.bytes == Some(bytes) {
            return;
        }
        match resize(agent, name, bytes).await {
            Ok(()) => self.bytes = Some(bytes),
            // Its first container is still being made, or an agent of an earlier release knows no
            // other size.
            Err(error) if matches!(error.code(), Code::NotFound | Code::Unimplemented) => {}
            Err(error) => {
                if self.refused.replace(bytes) != Some(bytes) {
                    let error = crate::error::chain(&error);
                    tracing::warn!(
                        volume = name,
                        bytes,
                        error,
                        "an emptyDir in the pod's memory keeps its size; it is tried again"
                    );
                }
            }
        }
    }
}

async fn resize(agent: &Agent, name: &str, bytes: u64) -> Result<(), AgentError> {
    let name = name.to_owned();
    agent
        .call("resize a volume", DEADLINE, |mut agent| async move {
            let request = ResizeVolumeRequest { name, bytes };
            agent.resize_volume(request).await
        })
        .await?;
    Ok(())
}

/// The size of the file system, while it is the same one.
async fn look(path: &Path, device: u64) -> Option<u64> {
    let path = path.to_owned();
    let found = tokio::task::spawn_blocking(move || size_of(&path, device)).await;
    found.ok()?
}

fn size_of(path: &Path, device: u64) -> Option<u64> {
    // What is opened is what is asked; nothing of it is kept, so that it can be unmounted.
    let directory = File::open(path).ok()?;
    if directory.metadata().ok()?.dev() != device {
        return None;
    }
    let found = rustix::fs::fstatvfs(&directory).ok()?;
    Some(found.f_blocks.saturating_mul(found.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_is_that_of_the_file_system_it_was() {
        let path = Path::new("/dev/shm");
        let Ok(found) = std::fs::metadata(path) else {
            println!("skipped: there is no /dev/shm");
            return;
        };
        let stat = rustix::fs::statvfs(path).unwrap();
        let bytes = stat.f_blocks * stat.f_frsize;
        assert_eq!(size_of(path, found.dev()), Some(bytes));
        assert_eq!(size_of(path, found.dev() + 1), None);
        assert_eq!(size_of(&path.join("nothing"), found.dev()), None);
    }
}
