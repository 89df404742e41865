//! The agent's report: when it serves, it dials the host's port 1025, and the VMM connects that to
//! a Unix socket on which the daemon has listened since before the VM's start; an agent on the host
//! connects to it by itself. Nothing is polled.

use std::{
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    time::Duration,
};

use bulkhead_proto::agent::Ready;
use prost::Message as _;
use tokio::{
    io::AsyncReadExt as _,
    net::{UnixListener, UnixStream},
};

use super::AgentError;

/// A version and two numbers; anything longer is not a report.
const LONGEST: u64 = 4 * 1024;

/// Waits for one agent to report. The socket's file goes with it.
#[derive(Debug)]
pub struct ReadyListener {
    listener: UnixListener,
    path: PathBuf,
}

impl ReadyListener {
    /// Listens at `path`, where a process running as `uid` (the VMM) may connect.
    pub fn bind(path: &Path, uid: u32) -> Result<Self, AgentError> {
        let failed = |source| AgentError::Listen {
            path: path.to_owned(),
            source,
        };
        let listener = UnixListener::bind(path).map_err(failed)?;
        let this = Self {
            listener,
            path: path.to_owned(),
        };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        chown(path, Some(uid), Some(uid)).map_err(failed)?;
        Ok(this)
    }

    /// The report, if it comes in time.
    pub async fn wait(self, deadline: Duration) -> Result<Ready, AgentError> {
        tokio::time::timeout(deadline, async {
            let (stream, _) =
                self.listener
                    .accept()
                    .await
                    .map_err(|source| AgentError::Listen {
                        path: self.path.clone(),
                        source,
                    })?;
            read(stream).await
        })
        .await
        .map_err(|_| AgentError::NotReady {
            seconds: deadline.as_secs(),
        })?
    }
}

impl Drop for ReadyListener {
    fn drop(&mut self) {
        // Only tidiness: the directory goes with the pod.
        let _gone = std::fs::remove_file(&self.path);
    }
}

async fn read(stream: UnixStream) -> Result<Ready, AgentError> {
    let mut bytes = Vec::new();
    stream
        .take(LONGEST)
        .read_to_end(&mut bytes)
        .await
        .map_err(|e| AgentError::Report {
            what: e.to_string(),
        })?;
    Ready::decode_length_delimited(bytes.as_slice()).map_err(|e| AgentError::Report {
        what: e.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    async fn report(bytes: Vec<u8>) -> Result<Ready, AgentError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v_1025");
        let uid = rustix::process::getuid().as_raw();
        let listener = ReadyListener::bind(&path, uid).unwrap();
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        drop(stream);
        let ready = listener.wait(Duration::from_secs(5)).await;
        assert!(!path.exists());
        ready
    }

    #[tokio::test]
    async fn a_report_is_read_and_rubbish_is_an_error() {
        let ready = Ready {
            version: "1".into(),
            agent_started_ns: 5,
            agent_ready_ns: 9,
        };
        assert_eq!(
            report(ready.encode_length_delimited_to_vec())
                .await
                .unwrap(),
            ready
        );
        assert!(matches!(
            report(vec![0xff; 9000]).await,
            Err(AgentError::Report { .. })
        ));
        assert!(matches!(
            report(vec![200, 1, 0]).await,
            Err(AgentError::Report { .. })
        ));
    }

    #[tokio::test]
    async fn silence_ends() {
        let dir = tempfile::tempdir().unwrap();
        let uid = rustix::process::getuid().as_raw();
        let listener = ReadyListener::bind(&dir.path().join("v"), uid).unwrap();
        let silent = listener.wait(Duration::from_millis(20)).await;
        assert!(matches!(silent, Err(AgentError::NotReady { .. })));
    }

    #[tokio::test]
    async fn a_report_is_taken_once_and_of_the_first_who_says_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v_1025");
        let uid = rustix::process::getuid().as_raw();
        let listener = ReadyListener::bind(&path, uid).unwrap();
        let report = |version: &str| Ready {
            version: version.into(),
            agent_started_ns: 1,
            agent_ready_ns: 2,
        };
        let mut streams = Vec::new();
        for version in ["first", "second", "third"] {
            let mut stream = UnixStream::connect(&path).await.unwrap();
            let bytes = report(version).encode_length_delimited_to_vec();
            stream.write_all(&bytes).await.unwrap();
            stream.shutdown().await.unwrap();
            streams.push(stream);
        }
        let ready = listener.wait(Duration::from_secs(5)).await.unwrap();
        assert_eq!(ready, report("first"));
        // Nothing can report after that, and connections made meanwhile are closed.
        assert!(UnixStream::connect(&path).await.is_err());
        for stream in &mut streams {
            let mut byte = [0];
            let end = tokio::time::timeout(Duration::from_secs(60), stream.read(&mut byte));
            assert_eq!(end.await.unwrap().unwrap_or(0), 0);
        }
    }

    #[tokio::test]
    async fn a_report_without_an_end_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v_1025");
        let uid = rustix::process::getuid().as_raw();
        let listener = ReadyListener::bind(&path, uid).unwrap();
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(&[10, 1]).await.unwrap();
        let never = listener.wait(Duration::from_millis(20)).await;
        assert!(matches!(never, Err(AgentError::NotReady { .. })));
        // Nor is more read than a report can be, end or no end.
        let listener = ReadyListener::bind(&path, uid).unwrap();
        let mut stream = UnixStream::connect(&path).await.unwrap();
        let flood =
            tokio::spawn(async move { while stream.write_all(&[1; 4096]).await.is_ok() {} });
        let flooded = listener.wait(Duration::from_secs(60)).await;
        assert!(!matches!(flooded, Err(AgentError::NotReady { .. })));
        flood.await.unwrap();
    }
}
