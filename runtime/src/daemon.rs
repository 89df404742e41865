//! `bulkhead serve`: directories, the lock that lets only one daemon run, recovery, the socket, and
//! a graceful end that leaves the pods running.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{
        DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bulkhead_proto::{
    archives::archives_server::ArchivesServer as ArchivesService,
    cri::{image_service_server::ImageServiceServer, runtime_service_server::RuntimeServiceServer},
};
use bulkhead_streaming::ServerError;
use rustix::fs::{FlockOperation, flock};
use tokio::{
    net::UnixListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tokio_stream::wrappers::UnixListenerStream;

use crate::{
    app::{App, OpenError},
    archives::ArchivesServer,
    config::Config,
    container,
    cri::{Deadlines, Server},
    error::chain,
    sandbox, streaming,
};

/// Requests in flight get this long at shutdown; what they do to pods is finished in the background
/// or taken up from the records by the next daemon.
const DRAIN: Duration = Duration::from_secs(10);
/// kubelet and runtimes agree on 16 MiB (ExecSync's output, lists of many pods).
const MAX_MESSAGE: usize = 16 << 20;

/// The daemon cannot run (any longer).
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A directory or file of the daemon cannot be used.
    #[error("cannot {action} {path}")]
    Files {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is one already.
    #[error(
        "another daemon runs: it holds {lock}; stop it first, or set other paths in the configuration"
    )]
    Running {
        /// The lock file.
        lock: PathBuf,
    },
    /// Records or images do not open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Exec, attach and port-forward could not be served.
    #[error(transparent)]
    Streaming(#[from] ServerError),
    /// A call on the process itself failed.
    #[error("cannot {action}")]
    Process {
        /// What was attempted.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The server ended.
    #[error("the CRI server on {socket} failed")]
    Server {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: tonic::transport::Error,
    },
}

/// Runs the daemon until SIGTERM or SIGINT.
pub async fn serve(config: Config) -> Result<(), ServeError> {
    let process = |action| move |source: io::Error| ServeError::Process { action, source };
    let mut terminate = signal(SignalKind::terminate()).map_err(process("listen for SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(process("listen for SIGINT"))?;
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!("{name}: shutting down; pods keep running");
        stop.send_replace(true);
    });
    serve_until(config, stopped).await
}

/// Runs the daemon until `stopped` says true.
pub async fn serve_until(
    config: Config,
    mut stopped: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    // A VMM is the child of a process that ends at once: it becomes ours, to be reaped.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).map_err(|e| {
        ServeError::Process {
            action: "become the reaper of the VMMs",
            source: e.into(),
        }
    })?;
    let paths = config.paths.clone();
    let (_lock, app) = tokio::task::spawn_blocking(move || {
        let lock = prepare(&config)?;
        Ok::<_, ServeError>((lock, App::open(config)?))
    })
    .await
    .map_err(|e| ServeError::Process {
        action: "open the state",
        source: io::Error::other(e),
    })??;

    sandbox::recover(&app).await;
    container::recover(&app).await;

    let streaming = streaming::listen(&app).await?;
    let streams = streaming.serve(Arc::clone(&app), stopped.clone());
    let listener = listen(&paths.socket)?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        socket = %paths.socket.display(),
        pods = app.pods.all().len(),
        "serving CRI v1"
    );
    let server = Server::new(Arc::clone(&app));
    let archives = ArchivesService::new(ArchivesServer::new(Arc::clone(&app)));
    let mut ending = stopped.clone();
    let graceful = async move {
        drop(ending.wait_for(|stop| *stop).await);
        app.events.close();
    };
    let serving = tonic::transport::Server::builder()
        .layer(tower::layer::layer_fn(Deadlines::new))
        .add_service(
            RuntimeServiceServer::new(server.clone())
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(usize::MAX),
        )
        .add_service(
            ImageServiceServer::new(server)
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(usize::MAX),
        )
        .add_service(archives)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), graceful);
    let drained = async {
        drop(stopped.wait_for(|stop| *stop).await);
        // The one timer of the end: clients that keep their connection are not waited for.
        let _late = tokio::time::timeout(DRAIN, std::future::pending::<()>()).await;
    };
    // The streaming server stops at once; what is in flight on the socket is waited for.
    let serving = async {
        tokio::pin!(serving);
        tokio::select! {
            result = &mut serving => result,
            () = streams => serving.await,
        }
    };
    let result = tokio::select! {
        result = serving => result,
        () = drained => {
            tracing::info!("requests still running after {} s are left", DRAIN.as_secs());
            Ok(())
        }
    };
    let _gone = fs::remove_file(&paths.socket);
    result.map_err(|source| ServeError::Server {
        socket: paths.socket,
        source,
    })
}

/// Makes the directories and takes the lock. Blocks.
fn prepare(config: &Config) -> Result<File, ServeError> {
    let paths = &config.paths;
    let socket_dir = paths.socket.parent().unwrap_or(Path::new("/"));
    // The socket's directory may be entered by its clients; the rest is the daemon's.
    for (dir, mode) in [
        (paths.state_dir.as_path(), 0o700),
        (paths.run_dir.as_path(), 0o755),
        (&paths.run_dir.join("pods"), 0o711),
        (&paths.state_dir.join("pods"), 0o700),
        (&paths.layers(), 0o700),
        (socket_dir, 0o755),
    ] {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(dir)
            .map_err(|source| ServeError::Files {
                action: "make the directory",
                path: dir.to_owned(),
                source,
            })?;
    }
    let lock = paths.state_dir.join("lock");
    let files = |source| ServeError::Files {
        action: "open",
        path: lock.clone(),
        source,
    };
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock)
        .map_err(files)?;
    // Held by this descriptor: gone with the process, however it ends.
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(ServeError::Running { lock }),
        Err(e) => Err(files(e.into())),
    }
}

/// Binds the socket. The lock is held: a socket that is there is a dead daemon's.
fn listen(path: &Path) -> Result<UnixListener, ServeError> {
    let files = |action| {
        move |source| ServeError::Files {
            action,
            path: path.to_owned(),
            source,
        }
    };
    match fs::symlink_metadata(path) {
        Ok(data) if data.file_type().is_socket() => {
            fs::remove_file(path).map_err(files("remove the stale socket"))?;
        }
        Ok(_) => {
            let source = io::Error::new(
                io::ErrorKind::AlreadyExists,
                "it exists and is not a socket; remove it or set paths.socket",
            );
            return Err(files("listen on")(source));
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(files("look at")(e)),
    }
    let listener = UnixListener::bind(path).map_err(files("listen on"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))
        .map_err(files("set the mode of"))?;
    Ok(listener)
}

impl ServeError {
    /// For the last line of the log.
    pub fn text(&self) -> String {
        chain(self)
    }
}
