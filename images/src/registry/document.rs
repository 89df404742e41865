//! Documents fetched whole: manifests, indexes and configurations, with their digests checked.

use super::{
    error::RegistryError,
    request::{self, Asked},
    retry::{self, StallTimer},
    session::{Failures, Need, Place, Session},
};
use crate::{digest::Digest, reference::Target};

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

    pub(super) fn asked_blob(&self, digest: &Digest) -> Asked {
        Asked {
            path: format!("blobs/{digest}"),
            what: format!("blob {}", self.name.repo_digest(digest)),
            head_only: false,
            accept: None,
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
        for (at, (_, place)) in places.into_iter().enumerate() {
            let tries = self.tries_at(at + 1 == count);
            let mut timer = StallTimer::new(&self.policy);
            let mut done = 0;
            let error = loop {
                done += 1;
                match self
                    .document_once(place, asked, expected, limit, &mut timer)
                    .await
                {
                    Ok(document) => return Ok(document),
                    Err(error) if error.transient() && done < tries => {
                        if !retry::back_off(&self.policy, done, &error).await {
                            break error.after(done);
                        }
                    }
                    Err(error) => break error.after(done),
                }
            };
            place.note(need, &error);
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
