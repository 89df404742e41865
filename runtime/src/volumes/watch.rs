//! A volume of the host that a copy in a guest follows: inotify on its root says when to look, the
//! volume is read whole, and the agent brings its copy into line. Turns that come faster than the
//! guest takes them are seen as their last one, as anyone who reads the volume would see them.

use std::{
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bulkhead_proto::agent::{
    PutVolumeRequest,
    put_volume_request::{Entry, Header, Link, Part},
};
use futures::{FutureExt as _, StreamExt as _};
use inotify::{Event, EventMask, EventStream, Inotify, WatchMask};
use rustix::fs::{Mode, OFlags};
use tokio::task::JoinHandle;

use super::{
    VolumeError, blocking,
    snapshot::{self, DATA, Snapshot},
};
use crate::agent::{Agent, AgentError};

/// For the agent to take a volume over.
const DEADLINE: Duration = Duration::from_secs(60);
/// Between two tries after a failure.
const RETRY: Duration = Duration::from_secs(1);
/// For inotify's events.
const BUFFER: usize = 4_096;
/// A writer that turns the volume while it is read makes it be read again so often.
const MAX_READS: usize = 16;

/// Ends when dropped.
#[derive(Debug)]
pub struct Watch(JoinHandle<()>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Watch {
    /// Brings the volume to the guest, and then every change of it.
    ///
    /// # Errors
    /// When it cannot be watched or read, or the agent does not take it.
    pub async fn start(agent: Agent, name: String, path: PathBuf) -> Result<Self, VolumeError> {
        let at = path.clone();
        let follower = blocking(move || {
            Follower::open(&at).map_err(|source| VolumeError::Host {
                action: "watch",
                path: at,
                source,
            })
        })
        .await?;
        // After the watch: what changes from here on is seen.
        let read = follower.read().await.map_err(|source| VolumeError::Host {
            action: "read the volume",
            path: path.clone(),
            source,
        })?;
        let first = read.ok_or_else(|| VolumeError::Host {
            action: "copy the volume",
            path: path.clone(),
            source: io::Error::other("its layout is no longer that of a ConfigMap or Secret"),
        })?;
        put(&agent, &name, &first).await?;
        Ok(Self(tokio::spawn(follower.run(agent, name, path, first))))
    }
}

struct Follower {
    root: Arc<OwnedFd>,
    events: EventStream<Vec<u8>>,
}

impl Follower {
    fn open(path: &Path) -> io::Result<Self> {
        // The path is without links; one that has come to stand on it is not followed.
        let root = rustix::fs::open(
            path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let events = Inotify::init()?;
        events.watches().add(
            format!("/proc/self/fd/{}", root.as_raw_fd()),
            WatchMask::CREATE
                | WatchMask::MOVED_TO
                | WatchMask::DELETE
                | WatchMask::ATTRIB
                | WatchMask::ONLYDIR,
        )?;
        Ok(Self {
            root: Arc::new(root),
            events: events.into_event_stream(vec![0; BUFFER])?,
        })
    }

    /// Reads the volume, again if its writer turned it meanwhile.
    async fn read(&self) -> io::Result<Option<Snapshot>> {
        let root = Arc::clone(&self.root);
        tokio::task::spawn_blocking(move || {
            let mut last = Ok(None);
            for _ in 0..MAX_READS {
                last = snapshot::read(&*root);
                match &last {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    _ => return last,
                }
            }
            last
        })
        .await
        .unwrap_or_else(|_| Err(io::Error::other("the daemon is ending")))
    }

    /// Waits for something that matters: the turn, and links to come or go. The writer's own
    /// preparations do not. What has happened by then is one change.
    async fn changed(&mut self) -> io::Result<()> {
        let ended = || io::Error::other("inotify has ended");
        loop {
            let event = self.events.next().await.ok_or_else(ended)??;
            if matters(&event) {
                break;
            }
        }
        while let Some(next) = self.events.next().now_or_never() {
            next.ok_or_else(ended)??;
        }
        Ok(())
    }

    async fn run(mut self, agent: Agent, name: String, path: PathBuf, mut last: Snapshot) {
        loop {
            if let Err(error) = self.changed().await {
                tracing::warn!(volume = %path.display(), %error, "cannot watch the volume any longer; pods keep the last copy");
                return;
            }
            // Until the guest has what the host has.
            while let Err(error) = self.bring(&agent, &name, &path, &mut last).await {
                let error = crate::error::chain(&error);
                tracing::debug!(volume = %path.display(), error, "cannot copy a change into the pod yet; it is tried again");
                bulkhead_common::back_off(RETRY).await;
            }
        }
    }

    async fn bring(
        &self,
        agent: &Agent,
        name: &str,
        path: &Path,
        last: &mut Snapshot,
    ) -> Result<(), VolumeError> {
        let read = self.read().await.map_err(|source| VolumeError::Host {
            action: "read the volume",
            path: path.to_owned(),
            source,
        })?;
        match read {
            Some(now) if now != *last => {
                put(agent, name, &now).await?;
                *last = now;
                Ok(())
            }
            Some(_) => Ok(()),
            None => {
                // Its last state stays, as on a node whose kubelet is stopped half-way.
                tracing::warn!(
                    volume = %path.display(),
                    "its layout is no longer that of a ConfigMap or Secret, or it is larger than 15 MiB; pods \
                     keep the last copy"
                );
                Ok(())
            }
        }
    }
}

fn matters(event: &Event<std::ffi::OsString>) -> bool {
    match &event.name {
        Some(name) => name == DATA || !name.as_bytes().starts_with(b".."),
        // Of the directory itself: its mode, lost events; not that it is gone.
        None => !event.mask.contains(EventMask::IGNORED),
    }
}

async fn put(agent: &Agent, name: &str, snapshot: &Snapshot) -> Result<(), AgentError> {
    let parts = parts(name, snapshot);
    agent
        .call("bring a volume", DEADLINE, |mut agent| async move {
            agent.put_volume(futures::stream::iter(parts)).await
        })
        .await?;
    Ok(())
}

fn parts(name: &str, snapshot: &Snapshot) -> Vec<PutVolumeRequest> {
    let bytes = |text: &std::ffi::OsStr| text.as_bytes().to_vec().into();
    let links = snapshot.links.iter().map(|(name, target)| Link {
        name: bytes(name),
        target: bytes(target),
    });
    let header = Header {
        name: name.to_owned(),
        data_directory: bytes(&snapshot.data_directory),
        root: Some(snapshot.root.into()),
        data: Some(snapshot.data.into()),
        links: links.collect(),
        places: snapshot
            .places
            .iter()
            .map(|place| bytes(place.as_os_str()))
            .collect(),
    };
    let entries = snapshot.entries.iter().map(|entry| {
        Part::Entry(Entry {
            path: bytes(entry.path.as_os_str()),
            directory: entry.content.is_none(),
            ownership: Some(entry.ownership.into()),
            content: entry.content.clone().unwrap_or_default().into(),
        })
    });
    std::iter::once(Part::Header(header))
        .chain(entries)
        .map(|part| PutVolumeRequest { part: Some(part) })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    /// A turn as the kubelet's AtomicWriter does it.
    fn turn(root: &Path, number: u32) {
        let name = format!("..{number}");
        fs::create_dir(root.join(&name)).unwrap();
        fs::write(root.join(&name).join("key"), number.to_string()).unwrap();
        let old = fs::read_link(root.join(DATA));
        symlink(&name, root.join("..data_tmp")).unwrap();
        fs::rename(root.join("..data_tmp"), root.join(DATA)).unwrap();
        if let Ok(old) = old {
            fs::remove_dir_all(root.join(old)).unwrap();
        }
    }

    #[tokio::test]
    async fn every_turn_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        turn(dir.path(), 0);
        symlink("..data/key", dir.path().join("key")).unwrap();
        let mut follower = Follower::open(dir.path()).unwrap();
        for number in 1..=100 {
            turn(dir.path(), number);
            let seen = tokio::time::timeout(DEADLINE, follower.changed());
            seen.await.expect("not seen").unwrap();
            let now = follower.read().await.unwrap().unwrap();
            assert_eq!(
                now.entries[0].content,
                Some(number.to_string().into_bytes())
            );
        }
    }

    #[tokio::test]
    async fn preparations_are_not_a_change() {
        let dir = tempfile::tempdir().unwrap();
        turn(dir.path(), 0);
        let mut follower = Follower::open(dir.path()).unwrap();
        fs::create_dir(dir.path().join("..1")).unwrap();
        symlink("..1", dir.path().join("..data_tmp")).unwrap();
        assert!(follower.changed().now_or_never().is_none());
        fs::rename(dir.path().join("..data_tmp"), dir.path().join(DATA)).unwrap();
        let seen = tokio::time::timeout(DEADLINE, follower.changed());
        seen.await.expect("not seen").unwrap();
    }
}
