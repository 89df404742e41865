//! The client's side of the OCI distribution protocol, as far as a pull needs it.
//!
//! [`Registry`] is the daemon's one; [`Session`] belongs to one pull of one image with one set of
//! credentials: it knows the hosts to ask (mirrors first), keeps their tokens, retries what may
//! pass, and checks digest and size of everything before it gives it on. What the bytes mean is
//! for `manifest` and `pull`.
//!
//! It is written on `reqwest` and not on `oci-client`, because that has no limit on the size of
//! manifests and tokens, no Retry-After, no mirrors below a path and no client certificates, and
//! panics on a token that does not fit into a header; types and reference grammar are `oci-spec`'s.

mod auth;
mod blob;
mod error;
mod request;
mod retry;
mod tls;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

pub use auth::{BadAuth, Credentials, PullSecret, Secret};
pub use blob::{Blob, Sink};
pub use error::RegistryError;
use reqwest::header::HeaderValue;
pub use retry::RetryPolicy;

use self::{request::Asked, retry::StallTimer};
use crate::{
    digest::Digest,
    hosts::{self, Endpoint, HostsError, Tls},
    reference::{ImageName, Target},
};

/// Clients kept for reuse of connections; configurations change rarely.
const MOST_CLIENTS: usize = 64;

/// Access to registries.
#[derive(Debug)]
pub struct Registry {
    config_dir: PathBuf,
    policy: RetryPolicy,
    clients: Mutex<HashMap<(Tls, bool), reqwest::Client>>,
}

/// One pull's view of the hosts that have the image.
#[derive(Debug)]
pub struct Session {
    name: ImageName,
    policy: RetryPolicy,
    places: Vec<Place>,
    /// The place that answered last: asked first from then on.
    preferred: AtomicUsize,
}

/// A host with what is known of it in this session.
#[derive(Debug)]
struct Place {
    endpoint: Endpoint,
    client: reqwest::Client,
    secret: Secret,
    authorization: Mutex<Option<Authorization>>,
}

/// What a host's challenge led to.
#[derive(Debug, Clone)]
struct Authorization {
    header: HeaderValue,
    expires: Option<Instant>,
}

/// A document fetched whole.
#[derive(Debug, Clone)]
pub struct Document {
    /// The bytes; their digest was checked.
    pub bytes: Vec<u8>,
    /// Their digest.
    pub digest: Digest,
    /// The `Content-Type` it came with.
    pub media_type: String,
}

/// What is needed of a host.
#[derive(Debug, Clone, Copy)]
enum Need {
    Resolve,
    Pull,
}

impl Registry {
    /// Access by the hosts' configuration in `config_dir`.
    pub fn new(config_dir: PathBuf, policy: RetryPolicy) -> Self {
        Self {
            config_dir,
            policy,
            clients: Mutex::default(),
        }
    }

    /// Begins a pull: reads the hosts' configuration; opens no connection yet.
    pub async fn session(
        self: &Arc<Self>,
        name: &ImageName,
        credentials: &Credentials,
    ) -> Result<Session, RegistryError> {
        let (registry, this) = (name.registry().to_owned(), Arc::clone(self));
        let found = tokio::task::spawn_blocking(move || {
            let found = hosts::endpoints(&this.config_dir, &registry)?;
            // Building a client parses certificates, the system's too: not for an async thread.
            found
                .into_iter()
                .map(|endpoint| Ok((this.client(&endpoint)?, endpoint)))
                .collect::<Result<Vec<_>, RegistryError>>()
        })
        .await;
        let found = found.unwrap_or_else(|_| {
            Err(HostsError::Read {
                path: self.config_dir.clone(),
                source: std::io::Error::other("the daemon is ending"),
            }
            .into())
        })?;
        let places = found
            .into_iter()
            .map(|(client, endpoint)| Place {
                secret: credentials.at(&endpoint, name.registry()).clone(),
                endpoint,
                client,
                authorization: Mutex::default(),
            })
            .collect();
        Ok(Session {
            name: name.clone(),
            policy: self.policy.clone(),
            places,
            preferred: AtomicUsize::new(0),
        })
    }

    fn client(&self, endpoint: &Endpoint) -> Result<reqwest::Client, RegistryError> {
        let loopback = hosts::is_loopback(endpoint.base.host_str().unwrap_or_default());
        let key = (endpoint.tls.clone(), loopback);
        let clients = || self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients().get(&key) {
            return Ok(client.clone());
        }
        let client = tls::client(endpoint, &self.policy)?;
        let mut clients = clients();
        if clients.len() >= MOST_CLIENTS {
            clients.clear();
        }
        clients.insert(key, client.clone());
        Ok(client)
    }
}

impl Session {
    /// The manifest (or index) the reference names, by its tag or its digest.
    pub async fn manifest(&self, accept: &str, limit: u64) -> Result<Document, RegistryError> {
        match self.name.target() {
            Target::Digest(digest) => self.manifest_by_digest(digest, accept, limit).await,
            Target::Tag(tag) => {
                let asked = Asked {
                    path: format!("manifests/{tag}"),
                    what: format!("manifest {}", self.name),
                    head_only: false,
                    accept: Some(accept.to_owned()),
                };
                self.document(Need::Resolve, &asked, None, limit).await
            }
        }
    }

    /// The digest that the reference's tag points at now, by a HEAD, which registries with limits
    /// do not count as a pull. `None` for whatever reason: then [`Self::manifest`] tells more.
    pub async fn tag_digest(&self, accept: &str) -> Option<Digest> {
        let Target::Tag(tag) = self.name.target() else {
            return None;
        };
        let asked = Asked {
            path: format!("manifests/{tag}"),
            what: format!("digest of {}", self.name),
            head_only: true,
            accept: Some(accept.to_owned()),
        };
        let (_, place) = self.places(Need::Resolve).ok()?.into_iter().next()?;
        let mut timer = StallTimer::new(&self.policy);
        let response = self.get(place, &asked, 0, &mut timer).await.ok()?;
        let claimed = response.headers().get("docker-content-digest")?;
        claimed.to_str().ok()?.parse().ok()
    }

    /// A manifest by digest: one an index names.
    pub async fn manifest_by_digest(
        &self,
        digest: &Digest,
        accept: &str,
        limit: u64,
    ) -> Result<Document, RegistryError> {
        let asked = Asked {
            path: format!("manifests/{digest}"),
            what: format!("manifest {}", self.name.repo_digest(digest)),
            head_only: false,
            accept: Some(accept.to_owned()),
        };
        self.document(Need::Pull, &asked, Some(digest), limit).await
    }

    /// A small blob whole: the image's configuration.
    pub async fn blob_whole(&self, digest: &Digest, limit: u64) -> Result<Document, RegistryError> {
        let asked = self.asked_blob(digest);
        self.document(Need::Pull, &asked, Some(digest), limit).await
    }

    fn asked_blob(&self, digest: &Digest) -> Asked {
        Asked {
            path: format!("blobs/{digest}"),
            what: format!("blob {}", self.name.repo_digest(digest)),
            head_only: false,
            accept: None,
        }
    }

    /// The places that may do what is needed, the one that answered last first.
    fn places(&self, need: Need) -> Result<Vec<(usize, &Place)>, RegistryError> {
        let preferred = self.preferred.load(Ordering::Relaxed);
        let mut places: Vec<_> = self
            .places
            .iter()
            .enumerate()
            .filter(|(_, place)| match need {
                Need::Resolve => place.endpoint.resolve,
                Need::Pull => place.endpoint.pull,
            })
            .collect();
        if places.is_empty() {
            return Err(RegistryError::NoHost {
                registry: self.name.registry().to_owned(),
                needed: match need {
                    Need::Resolve => "resolve",
                    Need::Pull => "pull",
                },
            });
        }
        // Tags are resolved in the configured order, always: a mirror that came up again counts.
        if matches!(need, Need::Pull) {
            places.sort_by_key(|(index, _)| *index != preferred);
        }
        Ok(places)
    }

    fn tries_at(&self, is_last: bool) -> u32 {
        if is_last {
            self.policy.tries.max(1)
        } else {
            self.policy.tries.clamp(1, 2)
        }
    }

    async fn document(
        &self,
        need: Need,
        asked: &Asked,
        expected: Option<&Digest>,
        limit: u64,
    ) -> Result<Document, RegistryError> {
        let places = self.places(need)?;
        let count = places.len();
        let mut failures = Failures::default();
        for (at, (index, place)) in places.into_iter().enumerate() {
            let tries = self.tries_at(at + 1 == count);
            let mut timer = StallTimer::new(&self.policy);
            let mut done = 0;
            let error = loop {
                done += 1;
                match self
                    .document_once(place, asked, expected, limit, &mut timer)
                    .await
                {
                    Ok(document) => {
                        self.preferred.store(index, Ordering::Relaxed);
                        return Ok(document);
                    }
                    Err(error) if error.transient() && done < tries => {
                        if !retry::back_off(&self.policy, done, &error).await {
                            break error.after(done);
                        }
                    }
                    Err(error) => break error.after(done),
                }
            };
            failures.add(place, error);
        }
        Err(failures.into_error(&asked.what))
    }

    async fn document_once(
        &self,
        place: &Place,
        asked: &Asked,
        expected: Option<&Digest>,
        limit: u64,
        timer: &mut StallTimer,
    ) -> Result<Document, RegistryError> {
        let mut response = self.get(place, asked, 0, timer).await?;
        let header = |name: &str| {
            response
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned)
        };
        let media_type = header("content-type").unwrap_or_default();
        let claimed = header("docker-content-digest");
        let bytes = request::body(place, asked, &mut response, limit, timer).await?;
        let digest = match expected {
            Some(expected) => {
                let mut hasher = expected.hasher();
                hasher.update(&bytes);
                hasher.finish()
            }
            None => Digest::of(&bytes),
        };
        let should_be = match (expected, claimed) {
            (Some(expected), _) => Some(expected.to_string()),
            // By tag the header is the registry's own word; only its sha256 can be compared.
            (None, Some(claimed)) if claimed.starts_with("sha256:") => Some(claimed),
            (None, _) => None,
        };
        if let Some(should_be) = should_be
            && should_be != digest.to_string()
        {
            return Err(RegistryError::Digest {
                host: place.host(),
                what: asked.what.clone(),
                expected: should_be,
                actual: digest.to_string(),
            });
        }
        Ok(Document {
            bytes,
            digest,
            media_type,
        })
    }
}

impl Place {
    /// `host[:port]` for messages.
    fn host(&self) -> String {
        let host = self.endpoint.base.host_str().unwrap_or_default();
        match self.endpoint.base.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        }
    }
}

/// The errors of several places, of which one is told.
#[derive(Debug, Default)]
struct Failures {
    all: Vec<RegistryError>,
}

impl Failures {
    fn add(&mut self, place: &Place, error: RegistryError) {
        if place.endpoint.mirror {
            tracing::warn!(
                host = %place.host(), error = %bulkhead_common::chain(&error),
                "a mirror failed; the next host is asked"
            );
        }
        self.all.push(error);
    }

    /// The registry's own word counts (it is asked last), unless it could not be reached and a
    /// mirror has said something definite: then that is what the reader can act on.
    fn into_error(mut self, what: &str) -> RegistryError {
        let definite = |error: &RegistryError| {
            !error.transient() && !matches!(error, RegistryError::Stalled { .. })
        };
        let last_is_definite = self.all.last().is_some_and(definite);
        let position = match self.all.iter().rposition(definite) {
            Some(position) if !last_is_definite => position,
            _ => self.all.len().saturating_sub(1),
        };
        if position < self.all.len() {
            return self.all.swap_remove(position);
        }
        // No place at all: `places` has refused that before.
        RegistryError::Receiver {
            what: what.to_owned(),
        }
    }
}
