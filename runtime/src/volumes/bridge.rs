//! A Unix socket of the host, reached from a guest: the daemon listens on the pod's side of a vsock
//! port and connects each connection to the socket.

use std::{
    io,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinHandle,
};

use super::VolumeError;

/// Connections of one pod to one socket at one time; more are closed.
const MAX_CONNECTIONS: usize = 256;
/// For the socket's owner to accept.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// After a failed accept (out of descriptors), so that others can free some.
const BACK_OFF: Duration = Duration::from_millis(100);

/// Ends with all its connections when dropped.
#[derive(Debug)]
pub struct Bridge {
    at: PathBuf,
    task: JoinHandle<()>,
}

impl Bridge {
    /// Listens at `at`, where the VMM running as `uid` may connect, for the socket at `path`.
    pub fn start(at: PathBuf, uid: Option<u32>, path: PathBuf) -> Result<Self, VolumeError> {
        let listener = listen(&at, uid).map_err(|source| VolumeError::Host {
            action: "listen at",
            path: at.clone(),
            source,
        })?;
        let task = tokio::spawn(serve(listener, path));
        Ok(Self { at, task })
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.task.abort();
        // Only tidiness: the directory goes with the pod.
        let _gone = std::fs::remove_file(&self.at);
    }
}

fn listen(at: &Path, uid: Option<u32>) -> io::Result<UnixListener> {
    // Left by a daemon that was killed.
    match std::fs::remove_file(at) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(at)?;
    std::fs::set_permissions(at, std::fs::Permissions::from_mode(0o600))?;
    chown(at, uid, uid)?;
    Ok(listener)
}

async fn serve(listener: UnixListener, path: PathBuf) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // The connections end with the bridge.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                        tracing::warn!(socket = %path.display(), "a pod has too many connections to it");
                        continue;
                    };
                    let path = path.clone();
                    connections.spawn(async move {
                        if let Err(error) = pass(stream, &path).await {
                            tracing::debug!(socket = %path.display(), %error, "a pod's connection ended");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(socket = %path.display(), %error, "cannot accept a pod's connection");
                    crate::back_off::back_off(BACK_OFF).await;
                }
            },
            Some(_ended) = connections.join_next() => {}
        }
    }
}

async fn pass(mut guest: UnixStream, path: &Path) -> io::Result<()> {
    // The path, not the inode: whoever serves it may have been started again.
    let mut host = tokio::time::timeout(CONNECT_DEADLINE, UnixStream::connect(path)).await??;
    tokio::io::copy_bidirectional(&mut guest, &mut host)
        .await
        .map(drop)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn bytes_go_both_ways_and_the_end_too() {
        let dir = tempfile::tempdir().unwrap();
        let (at, path) = (dir.path().join("port"), dir.path().join("real"));
        let real = UnixListener::bind(&path).unwrap();
        let bridge = Bridge::start(at.clone(), None, path).unwrap();
        let mut guest = UnixStream::connect(&at).await.unwrap();
        guest.write_all(b"question").await.unwrap();
        guest.shutdown().await.unwrap();
        let (mut host, _) = real.accept().await.unwrap();
        let mut text = String::new();
        host.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "question");
        host.write_all(b"answer").await.unwrap();
        drop(host);
        text.clear();
        guest.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "answer");
        // Nobody there: the guest's connection is closed, the bridge stays.
        drop(real);
        let mut guest = UnixStream::connect(&at).await.unwrap();
        text.clear();
        assert_eq!(guest.read_to_string(&mut text).await.unwrap_or(0), 0);
        drop(bridge);
        assert!(!at.exists());
    }
}
