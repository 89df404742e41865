//! A blob as a stream: into a [`Sink`], with its digest and size checked before the end is told,
//! and continued at the byte where a connection broke.

use std::future::Future;

use bulkhead_common::lock;
use bytes::Bytes;
use reqwest::{StatusCode, header};

use super::{
    error::RegistryError,
    request::{self, Asked},
    retry::{self, StallTimer},
    session::{Failures, Need, Place, Session},
};
use crate::digest::{Digest, Hasher};

/// Connections used up for one blob, however much each brought.
const MOST_CONNECTIONS: u32 = 200;

/// What a manifest says of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// Where a blob's bytes go.
pub trait Sink: Send {
    /// Takes the next bytes; waits while the receiver is busy. `false` if it has gone.
    fn put(&mut self, bytes: Bytes) -> impl Future<Output = bool> + Send;
}

/// How far a blob is.
struct Progress {
    offset: u64,
    hasher: Hasher,
    /// The places its bytes came from, in turn.
    from: Vec<usize>,
}

impl Session {
    /// Streams a blob. `Ok` means that exactly the bytes its digest names went into the sink; the
    /// sink's owner must not believe any end before that.
    ///
    /// # Errors
    /// After [`RegistryError::Digest`] and [`RegistryError::Length`] what the sink got may be wrong.
    /// Whoever gave it is then not asked for this blob again: if [`Self::wrong_places`] has grown,
    /// it can be streamed anew, into another sink.
    pub async fn blob(&self, blob: &Blob, sink: &mut impl Sink) -> Result<(), RegistryError> {
        let asked = self.asked_blob(&blob.digest);
        let mut progress = Progress {
            offset: 0,
            hasher: blob.digest.hasher(),
            from: Vec::new(),
        };
        let mut connections = 0;
        let mut failures = Failures::default();
        let places = self.places_for(&blob.digest)?;
        let count = places.len();
        for (at, (index, place)) in places.into_iter().enumerate() {
            let tries = self.tries_at(at + 1 == count);
            let mut timer = StallTimer::new(&self.policy);
            let mut fruitless = 0;
            let error = loop {
                let before = progress.offset;
                connections += 1;
                let done = self
                    .blob_once(place, &asked, blob, &mut progress, sink, &mut timer)
                    .await;
                if progress.offset > before && progress.from.last() != Some(&index) {
                    progress.from.push(index);
                }
                let done = match done {
                    Ok(()) => check(place, &asked, blob, &progress.hasher),
                    Err(error) => Err(error),
                };
                match done {
                    Ok(()) => return Ok(()),
                    Err(error @ RegistryError::Receiver { .. }) => return Err(error),
                    // Wrong bytes are in the sink: whoever sent them, it starts again.
                    Err(error)
                        if (error.is_wrong_content() && progress.offset > before)
                            || (matches!(error, RegistryError::Digest { .. })
                                && progress.offset > 0) =>
                    {
                        place.note(Need::Pull, &error);
                        self.distrust(&blob.digest, &progress.from);
                        return Err(error);
                    }
                    Err(error) => {
                        fruitless = if progress.offset > before {
                            1
                        } else {
                            fruitless + 1
                        };
                        let again = error.transient()
                            && fruitless < tries
                            && connections < MOST_CONNECTIONS
                            && retry::back_off(&self.policy, fruitless, &error).await;
                        if !again {
                            break error.after(connections);
                        }
                    }
                }
            };
            place.note(Need::Pull, &error);
            failures.add(place, error);
        }
        Err(failures.into_error(&asked.what))
    }

    /// Leaves out, from now on, who gave wrong bytes for a blob. Of several the last one may be
    /// right: it gets a chance to send the whole.
    fn distrust(&self, digest: &Digest, from: &[usize]) {
        let mut wrong = lock(&self.wrong);
        let several = from.iter().any(|place| Some(place) != from.last());
        for place in from {
            if !several || Some(place) != from.last() {
                wrong.insert((digest.clone(), *place));
            }
        }
    }

    async fn blob_once(
        &self,
        place: &Place,
        asked: &Asked,
        blob: &Blob,
        progress: &mut Progress,
        sink: &mut impl Sink,
        timer: &mut StallTimer,
    ) -> Result<(), RegistryError> {
        if progress.offset == blob.size && blob.size > 0 {
            return Ok(());
        }
        let mut response = self.get(place, asked, progress.offset, timer).await?;
        let whole = response.status() == StatusCode::OK;
        if let Some(length) = response
            .content_length()
            .filter(|n| whole && *n != blob.size)
        {
            return Err(RegistryError::Length {
                host: place.host(),
                what: asked.what.clone(),
                expected: blob.size,
                got: length,
            });
        }
        // A server without ranges sends it all again: what is there already is skipped.
        let mut skip = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let start = response
                    .headers()
                    .get(header::CONTENT_RANGE)
                    .and_then(range_start);
                if start != Some(progress.offset) {
                    return Err(RegistryError::Range {
                        host: place.host(),
                        what: asked.what.clone(),
                        offset: progress.offset,
                    });
                }
                0
            }
            _ => progress.offset,
        };
        loop {
            let chunk = timer
                .wait(response.chunk())
                .await
                .map_err(|late| late.into_error(place.host(), &asked.what))?;
            let mut chunk = match chunk {
                Ok(Some(chunk)) => chunk,
                Ok(None) if progress.offset == blob.size => return Ok(()),
                Ok(None) => return Err(cut(place, asked, blob, progress.offset)),
                // The body broke: whatever the reason, another connection may bring the rest.
                Err(source) if source.is_body() || source.is_decode() => {
                    tracing::debug!(
                        host = %place.host(), what = %asked.what, at = progress.offset,
                        error = %bulkhead_common::chain(&source.without_url()), "a download broke"
                    );
                    return Err(cut(place, asked, blob, progress.offset));
                }
                Err(source) => return Err(request::transport(place, asked, source)),
            };
            timer
                .progress(chunk.len() as u64)
                .map_err(|late| late.into_error(place.host(), &asked.what))?;
            let skipped = skip.min(chunk.len() as u64);
            skip -= skipped;
            // `skipped` is at most the chunk's length.
            let _ = chunk.split_to(usize::try_from(skipped).unwrap_or(chunk.len()));
            if chunk.is_empty() {
                continue;
            }
            let offset = progress.offset.saturating_add(chunk.len() as u64);
            if offset > blob.size {
                return Err(RegistryError::Length {
                    host: place.host(),
                    what: asked.what.clone(),
                    expected: blob.size,
                    got: offset,
                });
            }
            progress.hasher.update(&chunk);
            progress.offset = offset;
            if !sink.put(chunk).await {
                return Err(RegistryError::Receiver {
                    what: asked.what.clone(),
                });
            }
        }
    }
}

fn cut(place: &Place, asked: &Asked, blob: &Blob, got: u64) -> RegistryError {
    RegistryError::Cut {
        host: place.host(),
        what: asked.what.clone(),
        got,
        expected: blob.size,
        tries: 1,
    }
}

fn check(place: &Place, asked: &Asked, blob: &Blob, hasher: &Hasher) -> Result<(), RegistryError> {
    let actual = hasher.clone().finish();
    if actual == blob.digest {
        return Ok(());
    }
    Err(RegistryError::Digest {
        host: place.host(),
        what: asked.what.clone(),
        expected: blob.digest.to_string(),
        actual: actual.to_string(),
    })
}

/// `bytes 100-199/200` begins at 100 (RFC 9110 §14.4).
fn range_start(value: &header::HeaderValue) -> Option<u64> {
    let (start, _) = value
        .to_str()
        .ok()?
        .strip_prefix("bytes ")?
        .split_once('-')?;
    start.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_range() {
        let start = |text: &str| range_start(&header::HeaderValue::from_str(text).unwrap());
        assert_eq!(start("bytes 100-199/200"), Some(100));
        assert_eq!(start("bytes 0-1/*"), Some(0));
        assert_eq!(start("bytes */200"), None);
        assert_eq!(start("items 1-2/3"), None);
    }
}
