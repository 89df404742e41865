//! What a pull knows of the hosts that have its image, and which of them is asked next.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use reqwest::header::HeaderValue;

use super::{auth::Secret, error::RegistryError, retry::RetryPolicy};
use crate::{hosts::Endpoint, reference::ImageName};

/// One pull's view of the hosts that have the image.
#[derive(Debug)]
pub struct Session {
    pub(super) name: ImageName,
    pub(super) policy: RetryPolicy,
    pub(super) places: Vec<Place>,
    /// The place that answered last: asked first from then on.
    pub(super) preferred: AtomicUsize,
}

/// A host with what is known of it in this session.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) endpoint: Endpoint,
    pub(super) client: reqwest::Client,
    pub(super) secret: Secret,
    pub(super) authorization: Mutex<Option<Authorization>>,
}

/// What a host's challenge led to.
#[derive(Debug, Clone)]
pub(super) struct Authorization {
    pub(super) header: HeaderValue,
    pub(super) expires: Option<Instant>,
}

/// What is needed of a host.
#[derive(Debug, Clone, Copy)]
pub(super) enum Need {
    Resolve,
    Pull,
}

impl Session {
    /// The places that may do what is needed, the one that answered last first.
    pub(super) fn places(&self, need: Need) -> Result<Vec<(usize, &Place)>, RegistryError> {
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

    pub(super) fn tries_at(&self, is_last: bool) -> u32 {
        if is_last {
            self.policy.tries.max(1)
        } else {
            self.policy.tries.clamp(1, 2)
        }
    }
}

impl Place {
    /// `host[:port]` for messages.
    pub(super) fn host(&self) -> String {
        let host = self.endpoint.base.host_str().unwrap_or_default();
        match self.endpoint.base.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        }
    }
}

/// The errors of several places, of which one is told.
#[derive(Debug, Default)]
pub(super) struct Failures {
    all: Vec<RegistryError>,
}

impl Failures {
    pub(super) fn add(&mut self, place: &Place, error: RegistryError) {
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
    pub(super) fn into_error(mut self, what: &str) -> RegistryError {
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
