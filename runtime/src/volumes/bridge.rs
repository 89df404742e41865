//! A Unix socket of the host, reached from a guest: the daemon listens on the pod's side of a vsock
//! port and connects each connection to the socket, once it has said the token that the pod's agent
//! alone knows. Whoever else in the guest finds the port gets nothing of the socket, not even that
//! somebody serves it.

use std::{
    collections::VecDeque,
    io,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use bulkhead_common::lock;
use tokio::{
    io::AsyncReadExt as _,
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    task::{AbortHandle, JoinHandle, JoinSet},
};

use super::{
    VolumeError,
    token::{LENGTH, Token},
};

/// Connections of one pod to one socket at one time; more are closed.
const MAX_CONNECTIONS: usize = 256;
/// Connections that have not said the token; the oldest is closed for one more. An agent has fewer
/// on their way at one time (agent: volumes/socket.rs), so that only others' are.
const MAX_PENDING: usize = 128;
/// For the token: the agent says it at once, and its guest may be slow.
const TOKEN_DEADLINE: Duration = Duration::from_secs(30);
/// For the socket's owner to accept.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// After a failed accept (out of descriptors), so that others can free some.
const BACK_OFF: Duration = Duration::from_millis(100);

/// Ends with all its connections when dropped.
#[derive(Debug)]
pub struct Bridge {
    at: PathBuf,
    task: JoinHandle<()>,
    tokens: Tokens,
}

/// Each is good: two containers that are made at the same time bring one each, and the agent says
/// that of the later. None at all is for an agent from before there were tokens, which says nothing.
type Tokens = Arc<Mutex<Vec<Token>>>;

/// Why a connection came to nothing or ended.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("it did not say the token")]
    WrongToken,
    #[error("it did not say the token in {} s", TOKEN_DEADLINE.as_secs())]
    Silent,
    #[error("the socket did not accept it in {} s", CONNECT_DEADLINE.as_secs())]
    NotAccepted,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Bridge {
    /// Listens at `at`, where the VMM running as `uid` may connect, for the socket at `path`.
    pub fn start(
        at: PathBuf,
        uid: Option<u32>,
        path: PathBuf,
        token: Option<Token>,
    ) -> Result<Self, VolumeError> {
        let listener = listen(&at, uid).map_err(|source| VolumeError::Host {
            action: "listen at",
            path: at.clone(),
            source,
        })?;
        let tokens: Tokens = Arc::new(Mutex::new(token.into_iter().collect()));
        let task = tokio::spawn(serve(listener, path, Arc::clone(&tokens)));
        Ok(Self { at, task, tokens })
    }

    /// Takes a further container's token, too.
    pub fn also(&self, token: &Token) {
        let mut tokens = lock(&self.tokens);
        if !tokens.contains(token) {
            tokens.push(token.clone());
        }
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

async fn serve(listener: UnixListener, path: PathBuf, tokens: Tokens) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // The connections end with the bridge.
    let mut pending: JoinSet<Result<UnixStream, ConnectionError>> = JoinSet::new();
    let mut oldest_first: VecDeque<AbortHandle> = VecDeque::new();
    let mut connections = JoinSet::new();
    let mut refused: u64 = 0;
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    oldest_first.retain(|one| !one.is_finished());
                    if oldest_first.len() >= MAX_PENDING && let Some(oldest) = oldest_first.pop_front() {
                        oldest.abort();
                    }
                    oldest_first.push_back(pending.spawn(heard(stream, Arc::clone(&tokens), TOKEN_DEADLINE)));
                }
                Err(error) => {
                    tracing::warn!(socket = %path.display(), %error, "cannot accept a pod's connection");
                    bulkhead_common::back_off(BACK_OFF).await;
                }
            },
            Some(heard) = pending.join_next() => {
                let why = match heard {
                    Ok(Ok(stream)) => match Arc::clone(&places).try_acquire_owned() {
                        Ok(place) => {
                            let path = path.clone();
                            connections.spawn(async move {
                                if let Err(error) = pass(stream, &path).await {
                                    tracing::debug!(socket = %path.display(), %error, "a pod's connection ended");
                                }
                                drop(place);
                            });
                            continue;
                        }
                        Err(_) => format!("it has {MAX_CONNECTIONS} already"),
                    },
                    Ok(Err(error)) => error.to_string(),
                    Err(_aborted) => format!("{MAX_PENDING} newer ones have not said the token either"),
                };
                refused = refused.saturating_add(1);
                // Logged at powers of two: a guest can make as many as it likes.
                if refused.is_power_of_two() {
                    tracing::warn!(socket = %path.display(), refused, why, "a pod's connection to a socket was closed");
                }
            }
            Some(_ended) = connections.join_next() => {}
        }
    }
}

/// A connection that has said a token.
async fn heard(
    mut guest: UnixStream,
    tokens: Tokens,
    deadline: Duration,
) -> Result<UnixStream, ConnectionError> {
    if lock(&tokens).is_empty() {
        return Ok(guest);
    }
    let mut said = [0; LENGTH];
    let read = tokio::time::timeout(deadline, guest.read_exact(&mut said)).await;
    read.map_err(|_| ConnectionError::Silent)??;
    match lock(&tokens).iter().any(|token| token.is(&said)) {
        true => Ok(guest),
        false => Err(ConnectionError::WrongToken),
    }
}

async fn pass(mut guest: UnixStream, path: &Path) -> Result<(), ConnectionError> {
    // The path, not the inode: its server may have been restarted.
    let connected = tokio::time::timeout(CONNECT_DEADLINE, UnixStream::connect(path)).await;
    let mut host = connected.map_err(|_| ConnectionError::NotAccepted)??;
    tokio::io::copy_bidirectional(&mut guest, &mut host).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    struct Place {
        at: PathBuf,
        real: UnixListener,
        token: Token,
        bridge: Bridge,
        _dir: tempfile::TempDir,
    }

    fn bridge() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let (at, path) = (dir.path().join("port"), dir.path().join("real"));
        let real = UnixListener::bind(&path).unwrap();
        let token = Token::new().unwrap();
        Place {
            bridge: Bridge::start(at.clone(), None, path, Some(token.clone())).unwrap(),
            at,
            real,
            token,
            _dir: dir,
        }
    }

    /// Everything up to the end. A reset is an end, too.
    async fn rest(stream: &mut UnixStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        let read = stream.read_to_end(&mut bytes);
        let read = tokio::time::timeout(Duration::from_secs(60), read).await;
        let _reset = read.expect("it stays open");
        bytes
    }

    #[tokio::test]
    async fn bytes_go_both_ways_and_the_end_too() {
        let place = bridge();
        let mut guest = UnixStream::connect(&place.at).await.unwrap();
        guest.write_all(&place.token.bytes()).await.unwrap();
        guest.write_all(b"question").await.unwrap();
        guest.shutdown().await.unwrap();
        let (mut host, _) = place.real.accept().await.unwrap();
        let mut text = String::new();
        host.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "question");
        host.write_all(b"answer").await.unwrap();
        drop(host);
        assert_eq!(rest(&mut guest).await, b"answer");
        // Nobody there: the guest's connection is closed, the bridge stays.
        drop(place.real);
        let mut guest = UnixStream::connect(&place.at).await.unwrap();
        guest.write_all(&place.token.bytes()).await.unwrap();
        assert_eq!(rest(&mut guest).await, b"");
        drop(place.bridge);
        assert!(!place.at.exists());
    }

    #[tokio::test]
    async fn without_the_token_the_socket_is_not_even_touched() {
        let place = bridge();
        let good = place.token.bytes();
        let mut last_differs = good;
        last_differs[LENGTH - 1] ^= 1;
        let too_late = [b"GET / HTTP/1.1\r\nHost: localhost\r\n".as_slice(), &good].concat();
        for said in [
            b"".as_slice(),
            &good[..LENGTH - 1],
            &last_differs,
            &[0; LENGTH],
            &too_late,
        ] {
            let mut guest = UnixStream::connect(&place.at).await.unwrap();
            guest.write_all(said).await.unwrap();
            guest.shutdown().await.unwrap();
            assert_eq!(rest(&mut guest).await, b"", "{said:?}");
        }
        // The first that the socket sees is one with the token.
        let mut guest = UnixStream::connect(&place.at).await.unwrap();
        guest.write_all(&good).await.unwrap();
        guest.write_all(b"first").await.unwrap();
        let (mut host, _) = place.real.accept().await.unwrap();
        let mut first = [0; 5];
        host.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"first");
    }

    #[tokio::test]
    async fn silent_connections_are_bounded_and_keep_no_other_out() {
        let place = bridge();
        let mut silent = Vec::new();
        for _ in 0..MAX_PENDING {
            silent.push(UnixStream::connect(&place.at).await.unwrap());
        }
        // One more, and it is served; the oldest is closed for it, and no other.
        let mut guest = UnixStream::connect(&place.at).await.unwrap();
        guest.write_all(&place.token.bytes()).await.unwrap();
        guest.write_all(b"hello").await.unwrap();
        let (mut host, _) = place.real.accept().await.unwrap();
        let mut heard = [0; 5];
        host.read_exact(&mut heard).await.unwrap();
        assert_eq!(rest(&mut silent[0]).await, b"");
        let mut second = [0];
        let open = silent[1].try_read(&mut second);
        assert_eq!(open.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[tokio::test]
    async fn silence_ends() {
        let (mut guest, daemon) = UnixStream::pair().unwrap();
        guest.write_all(&[1; LENGTH - 1]).await.unwrap();
        let tokens = Arc::new(Mutex::new(vec![Token::new().unwrap()]));
        let silent = heard(daemon, tokens, Duration::from_millis(20)).await;
        assert!(matches!(silent, Err(ConnectionError::Silent)));
        assert_eq!(rest(&mut guest).await, b"");
    }

    #[tokio::test]
    async fn two_containers_made_at_once_both_have_the_socket() {
        let place = bridge();
        let other = Token::new().unwrap();
        place.bridge.also(&other);
        place.bridge.also(&other);
        assert_eq!(lock(&place.bridge.tokens).len(), 2);
        for token in [&place.token, &other] {
            let mut guest = UnixStream::connect(&place.at).await.unwrap();
            guest.write_all(&token.bytes()).await.unwrap();
            guest.write_all(b"hello").await.unwrap();
            let (mut host, _) = place.real.accept().await.unwrap();
            let mut heard = [0; 5];
            host.read_exact(&mut heard).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_pod_from_before_there_were_tokens_keeps_its_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let (at, path) = (dir.path().join("port"), dir.path().join("real"));
        let real = UnixListener::bind(&path).unwrap();
        let _bridge = Bridge::start(at.clone(), None, path, None).unwrap();
        let mut guest = UnixStream::connect(&at).await.unwrap();
        guest.write_all(b"hello").await.unwrap();
        let (mut host, _) = real.accept().await.unwrap();
        let mut heard = [0; 5];
        host.read_exact(&mut heard).await.unwrap();
    }
}
