//! What a pull knows of the hosts that have its image, and which of them is asked next.

use std::{
    collections::HashSet,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use bulkhead_common::lock;
use reqwest::header::HeaderValue;

use super::{auth::Secret, error::RegistryError, retry::RetryPolicy};
use crate::{digest::Digest, hosts::Endpoint, reference::ImageName};

/// One pull's view of the hosts that have the image.
#[derive(Debug)]
pub struct Session {
    pub(super) name: ImageName,
    pub(super) policy: RetryPolicy,
    pub(super) places: Vec<Place>,
    /// Places that gave wrong bytes for a blob: not asked for it again.
    pub(super) wrong: Mutex<HashSet<(Digest, usize)>>,
}

/// A host with what is known of it in this session.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) endpoint: Endpoint,
    pub(super) client: reqwest::Client,
    pub(super) secret: Secret,
    pub(super) authorization: Mutex<Option<Authorization>>,
    /// Whether it failed in this session, so that the others are asked before it.
    pub(super) failed: AtomicBool,
}

/// What a host's challenge led to.
#[derive(Debug, Clone)]
pub(super) struct Authorization {
    pub(super) header: HeaderValue,
    pub(super) expires: Option<Instant>,
}

/// What is needed of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    Resolve,
    Pull,
}

impl Session {
    /// The places that may do what is needed, in the order of the configuration; for content
    /// those that failed in this session come last.
    pub(super) fn places(&self, need: Need) -> Result<Vec<(usize, &Place)>, RegistryError> {
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
        if need == Need::Pull {
            places.sort_by_key(|(_, place)| place.failed.load(Ordering::Relaxed));
        }
        Ok(places)
    }

    /// The places for a blob: not those that gave wrong bytes for it.
    pub(super) fn places_for(
        &self,
        digest: &Digest,
    ) -> Result<Vec<(usize, &Place)>, RegistryError> {
        let mut places = self.places(Need::Pull)?;
        let wrong = lock(&self.wrong);
        places.retain(|(index, _)| !wrong.contains(&(digest.clone(), *index)));
        Ok(places)
    }

    /// How many places gave wrong bytes for a blob; `None` if nobody is left to ask for it.
    pub fn wrong_places(&self, digest: &Digest) -> Option<usize> {
        if self
            .places_for(digest)
            .is_ok_and(|places| places.is_empty())
        {
            return None;
        }
        let wrong = lock(&self.wrong);
        Some(wrong.iter().filter(|(other, _)| other == digest).count())
    }

    /// Whether more than one place may be asked for a blob.
    pub fn has_several_places(&self, digest: &Digest) -> bool {
        self.places_for(digest).is_ok_and(|places| places.len() > 1)
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
    /// Notes a failure after which the other places go first. That it lacks one thing says
    /// nothing of the others: a mirror may have a part of an image only.
    pub(super) fn note(&self, need: Need, error: &RegistryError) {
        if need == Need::Resolve || !matches!(error, RegistryError::NotFound { .. }) {
            self.failed.store(true, Ordering::Relaxed);
        }
    }

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
