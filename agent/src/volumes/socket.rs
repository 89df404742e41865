//! Unix sockets of the host in the guest: the agent listens, and each connection goes on to a port
//! of the host, where the daemon connects it to the real socket.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_proto::agent::SocketVolume;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};

use super::{VolumeError, Volumes, place};
use crate::clock;

/// Connections of one socket at one time; more wait.
const MAX_CONNECTIONS: usize = 256;

impl Volumes {
    /// Listens for a socket, once for the pod, and gives its path.
    pub(super) async fn socket(&self, socket: &SocketVolume) -> Result<PathBuf, VolumeError> {
        let path = self.paths.socket(&socket.name);
        let mut listening = self.sockets.lock().await;
        if listening.contains(&socket.name) {
            return Ok(path);
        }
        let failed = |error| VolumeError::File {
            what: "listening at",
            path: path.clone(),
            error,
        };
        if let Some(parent) = path.parent() {
            place::make_directory(parent)?;
        }
        let listener = UnixListener::bind(&path).map_err(failed)?;
        let own = socket.ownership.unwrap_or_default();
        let mode = std::fs::Permissions::from_mode(own.mode & 0o7777);
        std::fs::set_permissions(&path, mode).map_err(failed)?;
        chown(&path, Some(own.uid), Some(own.gid)).map_err(failed)?;
        tokio::spawn(serve(listener, socket.port));
        listening.insert(socket.name.clone());
        Ok(path)
    }
}

/// As long as the pod.
async fn serve(listener: UnixListener, port: u32) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(async move {
                    if let Err(error) = pass(stream, port).await {
                        tracing::debug!(port, %error, "a connection to a socket of the host ended");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(port, %error, "a connection could not be accepted");
                clock::back_off(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn pass(mut inner: UnixStream, port: u32) -> std::io::Result<()> {
    let mut outer = VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, port)).await?;
    tokio::io::copy_bidirectional(&mut inner, &mut outer)
        .await
        .map(drop)
}
