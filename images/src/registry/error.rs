//! What can go wrong between this node and a registry.

use std::time::Duration;

use crate::hosts::HostsError;

/// A failed request to a registry. `what` is the thing asked for, `host` who was asked.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields are named by the texts")]
pub enum RegistryError {
    /// The hosts' configuration is not usable.
    #[error(transparent)]
    Hosts(#[from] HostsError),
    /// A TLS setting (authority, client certificate) is not usable.
    #[error("the TLS settings for registry host {host} cannot be used: {why}")]
    Tls { host: String, why: String },
    /// An HTTP client could not be set up.
    #[error("cannot set up a connection to registry host {host}")]
    Client {
        host: String,
        source: reqwest::Error,
    },
    /// No configured host may do what is needed.
    #[error(
        "no host configured for registry {registry} has the capability \"{needed}\"; give it to \
         one of them in its hosts.toml"
    )]
    NoHost {
        registry: String,
        needed: &'static str,
    },
    /// 401, or the token service refused.
    #[error(
        "pull access denied: registry {host} wants other credentials for {what} than the ones \
         given{given} (401 Unauthorized, realm {realm}); check the pull secret, or that the image \
         exists"
    )]
    Unauthenticated {
        host: String,
        what: String,
        realm: String,
        given: &'static str,
    },
    /// 403.
    #[error(
        "pull access denied: registry {host} denies access to {what} (403 Forbidden, realm \
         {realm}); check that these credentials may pull it"
    )]
    Forbidden {
        host: String,
        what: String,
        realm: String,
    },
    /// 404.
    #[error("registry {host} has no {what}: not found; check the name and the tag")]
    NotFound { host: String, what: String },
    /// 429.
    #[error(
        "registry {host} limits the rate of requests and refused {what} (429 Too Many Requests, \
         {tries} tries{}); \
         wait, pull with credentials, or configure a mirror",
        retry_after.map_or(String::new(), |wait| format!(", it asks to wait {} s", wait.as_secs()))
    )]
    RateLimited {
        host: String,
        what: String,
        tries: u32,
        retry_after: Option<Duration>,
    },
    /// 5xx.
    #[error("registry {host} is failing: it answered {status} to {what} ({tries} tries)")]
    Server {
        host: String,
        what: String,
        status: u16,
        tries: u32,
        retry_after: Option<Duration>,
    },
    /// Another status.
    #[error("registry {host} answered {what} with HTTP status {status}, which is not expected")]
    Status {
        host: String,
        what: String,
        status: u16,
    },
    /// No connection, or it broke.
    #[error("cannot reach registry {host} for {what} ({tries} tries){hint}")]
    Transport {
        host: String,
        what: String,
        tries: u32,
        hint: &'static str,
        source: reqwest::Error,
    },
    /// The connection ended before the body did.
    #[error("registry {host} cut {what} off after {got} of {expected} bytes ({tries} tries)")]
    Cut {
        host: String,
        what: String,
        got: u64,
        expected: u64,
        tries: u32,
    },
    /// One connection was silent for a while; another may do.
    #[error("registry {host} was silent for {seconds} s on {what} ({tries} tries)")]
    Silent {
        host: String,
        what: String,
        seconds: u64,
        tries: u32,
    },
    /// No progress within the time limit.
    #[error(
        "registry {host} sent nothing of {what} for {seconds} s, the limit \
         (registry.stall_timeout_secs); the registry or the network is down or too slow"
    )]
    Stalled {
        host: String,
        what: String,
        seconds: u64,
    },
    /// Too many redirects.
    #[error("registry {host} redirected {what} more than {limit} times")]
    Redirects {
        host: String,
        what: String,
        limit: u32,
    },
    /// A redirect that is not followed.
    #[error("registry {host} redirected {what} to {location:?}, which is refused: {why}")]
    BadRedirect {
        host: String,
        what: String,
        location: String,
        why: &'static str,
    },
    /// A body beyond its limit.
    #[error("{what} from registry {host} is larger than {limit} bytes, the limit; it is refused")]
    TooLarge {
        host: String,
        what: String,
        limit: u64,
    },
    /// The content is not what its digest says.
    #[error(
        "{what} from registry {host} has the digest {actual}, not {expected}: the registry (or \
         what stands between) altered or damaged it; it was thrown away"
    )]
    Digest {
        host: String,
        what: String,
        expected: String,
        actual: String,
    },
    /// A body shorter or longer than its descriptor.
    #[error("{what} from registry {host} has {got} bytes, not {expected} as its manifest says")]
    Length {
        host: String,
        what: String,
        expected: u64,
        got: u64,
    },
    /// The answer to a range request is not that range.
    #[error("registry {host} answered a request for {what} from byte {offset} with another range")]
    Range {
        host: String,
        what: String,
        offset: u64,
    },
    /// The token service's answer is no token.
    #[error("the token service {realm} of registry {host} {why}")]
    Token {
        host: String,
        realm: String,
        why: &'static str,
    },
    /// The receiver of a blob gave up; its own error says why.
    #[error("the receiver of {what} gave up")]
    Receiver { what: String },
}

impl RegistryError {
    /// Whether the same request may succeed a moment later.
    pub fn transient(&self) -> bool {
        matches!(
            self,
            Self::RateLimited { .. }
                | Self::Server { .. }
                | Self::Transport { .. }
                | Self::Cut { .. }
                | Self::Silent { .. }
        )
    }

    /// Whether what came is not what was asked for, so that another host may do better.
    pub fn is_wrong_content(&self) -> bool {
        matches!(self, Self::Digest { .. } | Self::Length { .. })
    }

    /// How long the registry asks to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } | Self::Server { retry_after, .. } => {
                *retry_after
            }
            _ => None,
        }
    }

    /// The same error, saying how often it was tried.
    #[must_use]
    pub fn after(mut self, count: u32) -> Self {
        if let Self::RateLimited { tries, .. }
        | Self::Server { tries, .. }
        | Self::Transport { tries, .. }
        | Self::Cut { tries, .. }
        | Self::Silent { tries, .. } = &mut self
        {
            *tries = count;
        }
        self
    }
}

impl RegistryError {
    /// Whether the registry is down or misbehaves, rather than refusing or lacking what was asked.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(
            self,
            Self::Server { .. }
                | Self::Transport { .. }
                | Self::Cut { .. }
                | Self::Silent { .. }
                | Self::Stalled { .. }
                | Self::Redirects { .. }
                | Self::BadRedirect { .. }
                | Self::Status { .. }
                | Self::Range { .. }
        )
    }
}
