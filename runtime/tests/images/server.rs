//! A registry that does what a test says, bad things above all: HTTP/1.1 by hand, one request per
//! connection, so that it can be cut anywhere.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bulkhead_images::{PullSecret, digest::Digest};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use super::fixture::{Image, MANIFEST_TYPE};

/// The `Authorization` of [`login`].
pub const BASIC: &str = "Basic bWU6c2VjcmV0"; // me:secret

/// Somebody's credentials.
pub fn login() -> PullSecret {
    PullSecret {
        username: "me".to_owned(),
        password: "secret".to_owned(),
        ..PullSecret::default()
    }
}

/// What a client asked.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    /// Path and query.
    pub path: String,
    pub headers: HashMap<String, String>,
    /// Whether the same path was asked before, and how often.
    pub before: usize,
}

impl Asked {
    /// What the client shows of its credentials.
    pub fn authorization(&self) -> Option<&str> {
        self.headers.get("authorization").map(String::as_str)
    }

    /// The first byte asked for.
    pub fn range_start(&self) -> Option<usize> {
        self.headers
            .get("range")?
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse()
            .ok()
    }
}

/// What it gets.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Close the connection after so many bytes of the body.
    pub cut: Option<usize>,
    /// Send one byte at a time with this much between.
    pub trickle: Option<Duration>,
    /// Never send a byte.
    pub silent: bool,
    /// Do not say how long the body is, and never end it.
    pub endless: bool,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            cut: None,
            trickle: None,
            silent: false,
            endless: false,
        }
    }

    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub fn cut(mut self, after: usize) -> Self {
        self.cut = Some(after);
        self
    }

    /// The rest of `body` from the byte asked for, as a server with ranges sends it.
    pub fn range(asked: &Asked, body: &[u8]) -> Self {
        match asked.range_start() {
            None => Self::new(200, body),
            Some(start) => Self::new(206, &body[start..]).header(
                "Content-Range",
                format!("bytes {start}-{}/{}", body.len() - 1, body.len()),
            ),
        }
    }
}

type Handler = dyn Fn(&Asked) -> Option<Reply> + Send + Sync;

/// A running server.
pub struct Server {
    /// `127.0.0.1:port`.
    pub address: String,
    log: Arc<Mutex<Vec<Asked>>>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Serves `images` as `test/image:N`, N counting from 0, but asks `handler` first.
    pub async fn with(
        images: Vec<Image>,
        handler: impl Fn(&Asked) -> Option<Reply> + Send + Sync + 'static,
    ) -> Self {
        let mut good = HashMap::new();
        for (number, image) in images.iter().enumerate() {
            for at in [number.to_string(), Digest::of(&image.manifest).to_string()] {
                let reply = Reply::new(200, image.manifest.clone())
                    .header("Content-Type", MANIFEST_TYPE)
                    .header(
                        "Docker-Content-Digest",
                        Digest::of(&image.manifest).to_string(),
                    );
                good.insert(format!("/v2/test/image/manifests/{at}"), reply);
            }
            for blob in image.blobs() {
                let path = format!("/v2/test/image/blobs/{}", Digest::of(blob));
                good.insert(path, Reply::new(200, blob));
            }
        }
        Self::raw(move |asked| {
            handler(asked).unwrap_or_else(|| {
                let path = asked.path.split('?').next().unwrap_or_default();
                match good.get(path) {
                    Some(reply) if asked.range_start().is_some() => {
                        Reply::range(asked, &reply.body)
                    }
                    Some(reply) => reply.clone(),
                    None => Reply::new(404, "{}"),
                }
            })
        })
        .await
    }

    pub async fn raw(handler: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let log = Arc::new(Mutex::new(Vec::<Asked>::new()));
        let handler: Arc<Handler> = Arc::new(move |asked: &Asked| Some(handler(asked)));
        let task = tokio::spawn({
            let log = Arc::clone(&log);
            async move {
                let mut connections = tokio::task::JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    connections.spawn(serve(stream, Arc::clone(&handler), Arc::clone(&log)));
                }
            }
        });
        Self { address, log, task }
    }

    /// The reference of an image by number.
    pub fn image(&self, number: usize) -> String {
        format!("{}/test/image:{number}", self.address)
    }

    /// All that was asked.
    pub fn asked(&self) -> Vec<Asked> {
        self.log.lock().unwrap().clone()
    }

    /// How often something with this in its path was asked for.
    pub fn count(&self, part: &str) -> usize {
        self.asked()
            .iter()
            .filter(|asked| asked.path.contains(part))
            .count()
    }
}

async fn serve(mut stream: TcpStream, handler: Arc<Handler>, log: Arc<Mutex<Vec<Asked>>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let mut words = lines.next().unwrap().split(' ').map(str::to_owned);
    let mut asked = Asked {
        method: words.next().unwrap(),
        path: words.next().unwrap(),
        headers: lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect(),
        before: 0,
    };
    {
        let mut log = log.lock().unwrap();
        asked.before = log.iter().filter(|other| other.path == asked.path).count();
        log.push(asked.clone());
    }
    let Some(reply) = handler(&asked) else { return };
    if reply.silent {
        std::future::pending::<()>().await;
    }
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", reply.status);
    let says_length = reply
        .headers
        .iter()
        .any(|(name, _)| name == "Content-Length");
    if !reply.endless && !says_length {
        head += &format!("Content-Length: {}\r\n", reply.body.len());
    }
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += "\r\n";
    if stream.write_all(head.as_bytes()).await.is_err() {
        return;
    }
    let body = &reply.body[..reply.cut.unwrap_or(reply.body.len())];
    if let Some(pause) = reply.trickle {
        let mut ticks = tokio::time::interval(pause);
        for byte in body {
            ticks.tick().await;
            if stream.write_all(&[*byte]).await.is_err() {
                return;
            }
        }
    }
    while stream.write_all(body).await.is_ok() && reply.endless {}
}
