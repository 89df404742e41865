//! The commands' connection to the daemon: CRI over its socket, as a kubelet has it.

use std::{
    io,
    path::{Path, PathBuf},
};

use bulkhead_proto::{
    archives::archives_client::ArchivesClient,
    cri::{image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient},
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// As the daemon's own limit: a list of many containers is long.
const MAX_MESSAGE: usize = 16 << 20;

/// A command cannot call the daemon.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// The command's own event loop.
    #[error("cannot set up the connection to the daemon")]
    EventLoop(#[source] io::Error),
    /// Nothing listens.
    #[error("no daemon answers on {socket}: start it with `bulkhead serve` (as root)")]
    Connect {
        /// Its socket.
        socket: PathBuf,
        /// Why.
        source: tonic::transport::Error,
    },
    /// It answered with an error.
    #[error("the daemon could not {action}: {} ({:?})", .status.message(), .status.code())]
    Call {
        /// What was asked.
        action: &'static str,
        /// Its answer.
        status: Box<tonic::Status>,
    },
}

/// The services of the daemon.
#[derive(Debug, Clone)]
pub(super) struct Daemon {
    channel: Channel,
}

impl Daemon {
    /// Connects to its socket.
    pub(super) async fn connect(socket: &Path) -> Result<Self, ClientError> {
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://bulkhead.invalid");
        let channel = endpoint.connect_with_connector(connector).await;
        let failed = |source| ClientError::Connect {
            socket: socket.to_owned(),
            source,
        };
        Ok(Self {
            channel: channel.map_err(failed)?,
        })
    }

    /// CRI's RuntimeService.
    pub(super) fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// CRI's ImageService.
    pub(super) fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// The daemon's service for images as files.
    pub(super) fn archives(&self) -> ArchivesClient<Channel> {
        ArchivesClient::new(self.channel.clone())
    }
}

/// Runs a command that calls the daemon.
///
/// # Errors
/// The command's own, and [`ClientError::EventLoop`].
pub(super) fn block_on<T, E: From<ClientError>>(
    command: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ClientError::EventLoop)?;
    runtime.block_on(command)
}

/// For `map_err` on a call: which one failed.
pub(super) fn failed(action: &'static str) -> impl FnOnce(tonic::Status) -> ClientError {
    move |status| ClientError::Call {
        action,
        status: Box::new(status),
    }
}
