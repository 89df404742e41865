//! Unix sockets of the host in the guest: the agent listens, and forwards each connection to a port
//! of the host, where the daemon connects it to the real socket. The agent first sends a token that
//! nothing else in the guest knows, so the mounted socket is the only way to the real one.

use std::collections::HashMap;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bulkhead_proto::agent::{Ownership, SocketVolume};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::time::timeout;
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};

use super::error::VolumeError;
use super::place;
use crate::clock;
use crate::paths::Paths;

/// Connections of one socket at one time; more wait.
const MAX_CONNECTIONS: usize = 256;
/// Of these, connections on their way to the daemon, which closes the oldest when too many have not
/// sent their token yet (runtime: volumes/bridge.rs).
const MAX_OPENING: usize = 32;
/// For the daemon to accept and the token to go.
const OPENING_DEADLINE: Duration = Duration::from_secs(60);
/// Bytes of a token.
const TOKEN: usize = 32;

type Token = [u8; TOKEN];

/// The sockets the agent listens on.
#[derive(Debug)]
pub(super) struct Sockets {
    paths: Paths,
    by_name: Mutex<HashMap<String, Listening>>,
}

struct Listening {
    ownership: Ownership,
    token: watch::Sender<Token>,
}

impl std::fmt::Debug for Listening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the token.
        f.debug_tuple("Listening").field(&self.ownership).finish()
    }
}

impl Sockets {
    /// None yet.
    pub(super) fn new(paths: Paths) -> Self {
        Self {
            paths,
            by_name: Mutex::default(),
        }
    }

    /// Listens on a socket, once for the pod, and gives its path.
    pub(super) async fn listen(&self, socket: &SocketVolume) -> Result<PathBuf, VolumeError> {
        let path = self.paths.socket(&socket.name);
        let token = token(socket)?;
        let ownership = socket.ownership.unwrap_or_default();
        let mut by_name = self.by_name.lock().await;
        match by_name.get_mut(&socket.name) {
            Some(listening) => {
                // It is the host's: who may use it there may have changed since, and the daemon
                // makes a token for each time that the pod begins to use it.
                if listening.ownership != ownership {
                    own(&path, ownership)?;
                    listening.ownership = ownership;
                }
                listening.token.send_replace(token);
            }
            None => {
                let listener = listen(&path, ownership)?;
                let (sender, receiver) = watch::channel(token);
                tokio::spawn(serve(listener, socket.port, receiver));
                let listening = Listening {
                    ownership,
                    token: sender,
                };
                by_name.insert(socket.name.clone(), listening);
            }
        }
        Ok(path)
    }
}

fn token(socket: &SocketVolume) -> Result<Token, VolumeError> {
    let token = socket.token.as_ref();
    token.try_into().map_err(|_| VolumeError::Invalid {
        field: "socket.token",
        value: format!("{} bytes", token.len()),
        allowed: "32 bytes",
    })
}

fn listen(path: &Path, ownership: Ownership) -> Result<UnixListener, VolumeError> {
    if let Some(parent) = path.parent() {
        place::make_directory(parent)?;
    }
    // Left by an attempt that failed behind this.
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).map_err(failed("listening at", path))?;
    own(path, ownership)?;
    Ok(listener)
}

/// The owner first: what a new mode allows is meant for the new owner.
fn own(path: &Path, ownership: Ownership) -> Result<(), VolumeError> {
    chown(path, Some(ownership.uid), Some(ownership.gid))
        .map_err(failed("giving an owner to", path))?;
    let mode = std::fs::Permissions::from_mode(ownership.mode & 0o7777);
    std::fs::set_permissions(path, mode).map_err(failed("setting the mode of", path))
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> VolumeError {
    let path = path.to_owned();
    move |error| VolumeError::File { what, path, error }
}

/// Serves for the life of the pod.
async fn serve(listener: UnixListener, port: u32, token: watch::Receiver<Token>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let opening = Arc::new(Semaphore::new(MAX_OPENING));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (opening, token) = (Arc::clone(&opening), token.clone());
                tokio::spawn(async move {
                    if let Err(error) = pass(stream, port, &opening, &token).await {
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

async fn pass(
    mut inner: UnixStream,
    port: u32,
    opening: &Semaphore,
    token: &watch::Receiver<Token>,
) -> std::io::Result<()> {
    let turn = opening.acquire().await.map_err(std::io::Error::other)?;
    let opened = async {
        let mut outer = VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, port)).await?;
        send_token(&mut outer, token).await?;
        Ok::<_, std::io::Error>(outer)
    };
    let mut outer = timeout(OPENING_DEADLINE, opened).await??;
    drop(turn);
    join(&mut inner, &mut outer).await
}

/// The current token, not that of when the program connected: the daemon knows no other.
async fn send_token(
    outer: &mut (impl AsyncWrite + Unpin),
    token: &watch::Receiver<Token>,
) -> std::io::Result<()> {
    let token = *token.borrow();
    outer.write_all(&token).await
}

async fn join(
    inner: &mut (impl AsyncRead + AsyncWrite + Unpin),
    outer: &mut (impl AsyncRead + AsyncWrite + Unpin),
) -> std::io::Result<()> {
    tokio::io::copy_bidirectional(inner, outer).await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn volume(token: &[u8], mode: u32) -> SocketVolume {
        SocketVolume {
            name: "s".to_owned(),
            port: 1 << 30,
            ownership: Some(Ownership {
                mode,
                uid: rustix::process::getuid().as_raw(),
                gid: rustix::process::getgid().as_raw(),
            }),
            token: token.to_vec().into(),
        }
    }

    #[tokio::test]
    async fn a_socket_mounted_again_gets_the_new_owner_mode_and_token() {
        let directory = tempfile::tempdir().unwrap();
        let sockets = Sockets::new(Paths::new(directory.path()));
        let path = sockets.listen(&volume(&[1; TOKEN], 0o600)).await.unwrap();
        let mode = || std::fs::metadata(&path).unwrap().mode() & 0o7777;
        assert_eq!(mode(), 0o600);
        let inode = std::fs::metadata(&path).unwrap().ino();
        let token = sockets.by_name.lock().await["s"].token.subscribe();
        // By another container, or after the host's socket was made anew.
        let again = sockets.listen(&volume(&[2; TOKEN], 0o660)).await.unwrap();
        assert_eq!((again, mode()), (path.clone(), 0o660));
        assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode);
        let mut bytes = Vec::new();
        send_token(&mut bytes, &token).await.unwrap();
        assert_eq!(bytes, [2; TOKEN]);
        // In no message.
        assert!(!format!("{sockets:?}").contains("2, 2"));
    }

    #[tokio::test]
    async fn a_token_has_32_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let sockets = Sockets::new(Paths::new(directory.path()));
        for length in [0, 1, 31, 33, 64] {
            let refused = sockets.listen(&volume(&vec![7; length], 0o600)).await;
            assert!(
                matches!(refused, Err(VolumeError::Invalid { .. })),
                "{length}"
            );
        }
        assert!(!sockets.paths.socket("s").exists());
    }
}
