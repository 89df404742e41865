//! Listening, TLS, HTTP, and the hand-over of an upgraded connection to what serves it.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming as Body, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
};
use tokio_rustls::TlsAcceptor;

use crate::{
    backend::Backend,
    error::ServerError,
    forward,
    hangup::HangUp,
    remote,
    settings::{Settings, Timeouts, TlsFiles},
    target::Target,
    upgrade::{self, ACCEPTED_HEADER, PROTOCOL_HEADER, Refusal, SPDY, Upgrade},
    urls::Urls,
};

/// Connections at one time, upgraded or not; further ones wait to be accepted.
const CONNECTIONS: usize = 2048;
/// For a TLS handshake, and for a request's headers.
const DEADLINE: Duration = Duration::from_secs(10);
/// After a failed accept.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// What a request's line and headers may take.
const MAX_HEAD: usize = 32 * 1024;

/// A bound socket, before anything is accepted.
pub struct Listening {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    timeouts: Timeouts,
    urls: Arc<Urls>,
}

impl std::fmt::Debug for Listening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listening")
            .field("listener", &self.listener)
            .field("tls", &self.tls.is_some())
            .finish_non_exhaustive()
    }
}

/// Binds the address; from here on, `urls` can give out URLs.
///
/// # Errors
/// The address cannot be listened on, or certificate or key cannot be used.
pub async fn listen(settings: Settings, urls: Arc<Urls>) -> Result<Listening, ServerError> {
    let failed = |source| ServerError::Listen {
        address: settings.address,
        source,
    };
    let tls = match settings.tls {
        Some(files) => Some(acceptor(files).await?),
        None => None,
    };
    let listener = TcpListener::bind(settings.address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    urls.listens(scheme, address);
    tracing::info!(%address, tls = tls.is_some(), "streaming server");
    Ok(Listening {
        listener,
        tls,
        timeouts: settings.timeouts,
        urls,
    })
}

async fn acceptor(files: TlsFiles) -> Result<TlsAcceptor, ServerError> {
    let read = tokio::task::spawn_blocking(move || {
        let wrong = |path: &Path, what: String| ServerError::Tls {
            path: path.to_owned(),
            what,
        };
        let chain = CertificateDer::pem_file_iter(&files.certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| wrong(&files.certificate, error.to_string()))?;
        if chain.is_empty() {
            let what = "it holds no PEM certificate".to_owned();
            return Err(wrong(&files.certificate, what));
        }
        let key = PrivateKeyDer::from_pem_file(&files.key)
            .map_err(|error| wrong(&files.key, error.to_string()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
            .map_err(|error| wrong(&files.certificate, error.to_string()))
    });
    let config = read.await.map_err(|_| ServerError::NotListening)??;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// What every connection of the server works with.
struct Shared<B> {
    backend: Arc<B>,
    urls: Arc<Urls>,
    timeouts: Timeouts,
    stopped: watch::Receiver<bool>,
}

impl<B> Clone for Shared<B> {
    fn clone(&self) -> Self {
        Self {
            backend: Arc::clone(&self.backend),
            urls: Arc::clone(&self.urls),
            timeouts: self.timeouts,
            stopped: self.stopped.clone(),
        }
    }
}

impl Listening {
    /// Where it listens.
    ///
    /// # Errors
    /// getsockname(2) failed.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Accepts and serves until `stopped` says true; what is connected then is cut.
    pub async fn serve<B: Backend>(self, backend: Arc<B>, stopped: watch::Receiver<bool>) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let shared = Shared {
            backend,
            urls: self.urls,
            timeouts: self.timeouts,
            stopped: stopped.clone(),
        };
        let accept = async {
            loop {
                let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                    return;
                };
                match self.listener.accept().await {
                    Ok((stream, _)) => {
                        let shared = shared.clone();
                        let tls = self.tls.clone();
                        spawn_until(stopped.clone(), accepted(stream, tls, shared, place));
                    }
                    Err(error) => {
                        // Out of descriptors, most likely: others must get to free some.
                        tracing::warn!(%error, "a streaming connection could not be accepted");
                        bulkhead_common::back_off(ACCEPT_AGAIN).await;
                    }
                }
            }
        };
        let mut end = stopped.clone();
        tokio::select! {
            () = accept => {}
            _ = end.wait_for(|stop| *stop) => {}
        }
    }
}

/// A task that ends with the server.
fn spawn_until(
    mut stopped: watch::Receiver<bool>,
    work: impl Future<Output = ()> + Send + 'static,
) {
    tokio::spawn(async move {
        tokio::select! {
            () = work => {}
            _ = stopped.wait_for(|stop| *stop) => {}
        }
    });
}

async fn accepted<B: Backend>(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    shared: Shared<B>,
    place: OwnedSemaphorePermit,
) {
    // Keystrokes must not wait for each other's acknowledgement.
    let _slower = stream.set_nodelay(true);
    keep_alive(&stream);
    let hang_up = HangUp::of(&stream);
    match tls {
        None => http(stream, hang_up, shared, place).await,
        Some(tls) => match tokio::time::timeout(DEADLINE, tls.accept(stream)).await {
            Ok(Ok(stream)) => http(stream, hang_up, shared, place).await,
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        },
    }
}

/// A client's machine that vanished is noticed in a minute or two, not after the idle time.
fn keep_alive(stream: &TcpStream) {
    use rustix::net::sockopt;
    let set = || -> rustix::io::Result<()> {
        sockopt::set_socket_keepalive(stream, true)?;
        sockopt::set_tcp_keepidle(stream, Duration::from_secs(30))?;
        sockopt::set_tcp_keepintvl(stream, Duration::from_secs(10))?;
        sockopt::set_tcp_keepcnt(stream, 6)
    };
    if let Err(error) = set() {
        tracing::debug!(%error, "TCP keep-alive cannot be set");
    }
}

async fn http<B, S>(stream: S, hang_up: HangUp, shared: Shared<B>, place: OwnedSemaphorePermit)
where
    B: Backend,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // Handed over with the one upgrade a connection can have.
    let held = std::sync::Mutex::new(Some((hang_up, place)));
    let held = Arc::new(held);
    let service = service_fn(move |request| {
        let (shared, held) = (shared.clone(), Arc::clone(&held));
        async move {
            let take = || held.lock().ok().and_then(|mut held| held.take());
            Ok::<_, std::convert::Infallible>(answer(request, &shared, take))
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(DEADLINE)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a streaming connection ended before its upgrade");
    }
}

type Answer = Response<Full<Bytes>>;

fn plain(status: StatusCode, text: impl Into<String>) -> Answer {
    let mut response = Response::new(Full::from(text.into() + "\n"));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

fn refused(refusal: Refusal) -> Answer {
    let mut response = plain(refusal.status, refusal.text);
    for protocol in refusal.accepted.iter().filter(|name| !name.is_empty()) {
        let value = HeaderValue::from_static(protocol);
        response.headers_mut().append(ACCEPTED_HEADER, value);
    }
    response
}

fn answer<B: Backend>(
    mut request: Request<Body>,
    shared: &Shared<B>,
    take: impl FnOnce() -> Option<(HangUp, OwnedSemaphorePermit)>,
) -> Answer {
    let path = request.uri().path().to_owned();
    let mut parts = path.trim_start_matches('/').splitn(2, '/');
    let (kind, token) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    let tokens = &shared.urls.tokens;
    let unknown = || {
        plain(
            StatusCode::NOT_FOUND,
            "no such streaming URL: each is valid for one use within a minute; ask for a new one",
        )
    };
    if !tokens.is_good(kind, token) {
        return unknown();
    }
    if request.method() != Method::GET && request.method() != Method::POST {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and POST");
    }
    let upgrade = match upgrade::negotiate(request.headers(), kind == "portforward") {
        Ok(upgrade) => upgrade,
        Err(refusal) => return refused(refusal),
    };
    let Some((hang_up, place)) = take() else {
        return plain(StatusCode::BAD_REQUEST, "one upgrade per connection");
    };
    let Some(target) = tokens.take(kind, token) else {
        return unknown();
    };
    let response = switching(&upgrade);
    let upgraded = hyper::upgrade::on(&mut request);
    let (backend, timeouts) = (Arc::clone(&shared.backend), shared.timeouts);
    spawn_until(shared.stopped.clone(), async move {
        let _place = place;
        // The client may hang up in the middle of the upgrade.
        match tokio::time::timeout(DEADLINE, upgraded).await {
            Ok(Ok(io)) => {
                serve(
                    backend,
                    target,
                    upgrade,
                    TokioIo::new(io),
                    hang_up,
                    timeouts,
                )
                .await
            }
            Ok(Err(error)) => tracing::debug!(%error, "an upgrade failed"),
            Err(_) => tracing::debug!("an upgrade took too long"),
        }
    });
    response
}

/// `101 Switching Protocols`.
fn switching(upgrade: &Upgrade) -> Answer {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    match upgrade {
        Upgrade::Spdy(protocol) => {
            headers.insert(header::UPGRADE, HeaderValue::from_static(SPDY));
            headers.insert(PROTOCOL_HEADER, HeaderValue::from_static(protocol));
        }
        Upgrade::WebSocket { protocol, accept } => {
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            if let Ok(accept) = HeaderValue::from_str(accept) {
                headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
            }
            if !protocol.is_empty() {
                let protocol = HeaderValue::from_static(protocol);
                headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
            }
        }
    }
    response
}

async fn serve<B, S>(
    backend: Arc<B>,
    target: Target,
    upgrade: Upgrade,
    io: S,
    hang_up: HangUp,
    timeouts: Timeouts,
) where
    B: Backend,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match target {
        Target::PortForward(to) => {
            forward::serve(&backend, to, upgrade, io, hang_up, timeouts).await
        }
        Target::Exec(exec) => {
            let wanted = exec.streams;
            if let Some(session) = remote::open(upgrade, io, hang_up, timeouts, wanted).await {
                backend.exec(exec, session).await;
            }
        }
        Target::Attach(attach) => {
            let wanted = attach.streams;
            if let Some(session) = remote::open(upgrade, io, hang_up, timeouts, wanted).await {
                backend.attach(attach, session).await;
            }
        }
    }
}
