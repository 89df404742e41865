//! One request to one host: challenge and token, redirects, the meaning of status codes, and
//! bodies that may not be larger than they should be.

use std::time::{Duration, Instant, SystemTime};

use bulkhead_common::lock;
use reqwest::{
    Method, Response, StatusCode, Url,
    header::{self, HeaderMap, HeaderValue},
};

use super::{
    auth::{self, Challenge, Secret},
    error::RegistryError,
    hint::hint,
    retry::StallTimer,
    session::{Authorization, Place, Session},
};

pub(super) const MOST_REDIRECTS: u32 = 10;

/// What is asked for.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    /// Behind `<base>/<repository>/`.
    pub path: String,
    /// For messages.
    pub what: String,
    /// Only the head of the answer.
    pub head_only: bool,
    /// The `Accept` header.
    pub accept: Option<String>,
}

impl Session {
    /// GETs from one place, from byte `offset` on, and gives back a 200 (or, with an offset, a
    /// 206) whose body is not read yet.
    pub(super) async fn get(
        &self,
        place: &Place,
        asked: &Asked,
        offset: u64,
        timer: &mut StallTimer,
    ) -> Result<Response, RegistryError> {
        let mut url = place.endpoint.base.clone();
        let path = format!(
            "{}/{}/{}",
            url.path().trim_end_matches('/'),
            self.name.repository(),
            asked.path
        );
        url.set_path(&path);
        if place.endpoint.mirror {
            // Which registry's image is meant: one mirror may stand for many.
            url.query_pairs_mut()
                .append_pair("ns", self.name.registry());
        }

        let mut authorization = place.known_authorization();
        let mut fresh = false;
        loop {
            let mut headers = HeaderMap::new();
            if let Some(accept) = asked
                .accept
                .as_deref()
                .and_then(|a| HeaderValue::from_str(a).ok())
            {
                headers.insert(header::ACCEPT, accept);
            }
            if offset > 0
                && let Ok(range) = HeaderValue::from_str(&format!("bytes={offset}-"))
            {
                headers.insert(header::RANGE, range);
            }
            let (response, at_home) = self
                .follow(
                    place,
                    asked,
                    url.clone(),
                    &headers,
                    authorization.as_ref(),
                    timer,
                )
                .await?;
            let status = response.status();
            if status == StatusCode::UNAUTHORIZED && at_home && !fresh {
                let challenges = auth::challenges(response.headers());
                let new = self.authorize(place, asked, &challenges, timer).await?;
                place.keep_authorization(new.clone());
                authorization = Some(new.header);
                fresh = true;
                continue;
            }
            if status == StatusCode::OK || (status == StatusCode::PARTIAL_CONTENT && offset > 0) {
                return Ok(response);
            }
            return Err(refused(place, asked, &response));
        }
    }

    /// Sends and follows redirects; tells whether the answer came from the place's own host. The
    /// host's own headers and the authorization go to that host only.
    async fn follow(
        &self,
        place: &Place,
        asked: &Asked,
        mut url: Url,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
        timer: &mut StallTimer,
    ) -> Result<(Response, bool), RegistryError> {
        for _ in 0..=MOST_REDIRECTS {
            let at_home = url.origin() == place.endpoint.base.origin();
            let mut headers = headers.clone();
            if at_home {
                for (name, value) in &place.endpoint.headers {
                    headers.append(name.clone(), value.clone());
                }
                if let Some(authorization) = authorization {
                    headers.insert(header::AUTHORIZATION, authorization.clone());
                }
            }
            let method = if asked.head_only {
                Method::HEAD
            } else {
                Method::GET
            };
            let request = place.client.request(method, url.clone());
            let sent = request.headers(headers).send();
            let response = timer
                .wait(sent)
                .await
                .map_err(|late| late.into_error(place.host(), &asked.what))?
                .map_err(|source| transport(place, asked, source))?;
            if !is_redirect(&response) {
                return Ok((response, at_home));
            }
            url = redirect_target(place, asked, &url, &response)?;
        }
        Err(RegistryError::Redirects {
            host: place.host(),
            what: asked.what.clone(),
            limit: MOST_REDIRECTS,
        })
    }

    /// Answers a challenge: by basic authentication, or with a token from the realm it names.
    async fn authorize(
        &self,
        place: &Place,
        asked: &Asked,
        challenges: &[Challenge],
        timer: &mut StallTimer,
    ) -> Result<Authorization, RegistryError> {
        let realm_of = |scheme: &str| {
            challenges
                .iter()
                .find(|challenge| challenge.scheme == scheme)
        };
        let denied = |realm: &str| RegistryError::Unauthenticated {
            host: place.host(),
            what: asked.what.clone(),
            realm: realm.to_owned(),
            given: match place.secret {
                Secret::None => ", which are none",
                _ => "",
            },
        };
        if let Some(challenge) = realm_of("bearer") {
            let realm = challenge
                .parameters
                .get("realm")
                .cloned()
                .unwrap_or_default();
            if let Secret::Bearer(token) = &place.secret {
                let header = auth::bearer(token).ok_or_else(|| denied(&realm))?;
                return Ok(Authorization {
                    header,
                    expires: None,
                });
            }
            return self
                .token(place, asked, challenge, &realm, timer, denied(&realm))
                .await;
        }
        if let Some(challenge) = realm_of("basic")
            && let Secret::Basic(user, password) = &place.secret
        {
            let realm = challenge
                .parameters
                .get("realm")
                .cloned()
                .unwrap_or_default();
            let header = auth::basic(user, password).ok_or_else(|| denied(&realm))?;
            return Ok(Authorization {
                header,
                expires: None,
            });
        }
        let named = challenges.first().and_then(|c| c.parameters.get("realm"));
        Err(denied(named.map_or("not named", String::as_str)))
    }
}

impl Place {
    fn known_authorization(&self) -> Option<HeaderValue> {
        let kept = lock(&self.authorization).clone()?;
        let good = kept.expires.is_none_or(|expires| expires > Instant::now());
        good.then_some(kept.header)
    }

    fn keep_authorization(&self, new: Authorization) {
        *lock(&self.authorization) = Some(new);
    }
}

pub(super) fn is_redirect(response: &Response) -> bool {
    matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308)
}

pub(super) fn redirect_target(
    place: &Place,
    asked: &Asked,
    from: &Url,
    response: &Response,
) -> Result<Url, RegistryError> {
    let location = response
        .headers()
        .get(header::LOCATION)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let bad = |why| RegistryError::BadRedirect {
        host: place.host(),
        what: asked.what.clone(),
        location: location.chars().take(200).collect(),
        why,
    };
    if location.is_empty() {
        return Err(bad("it names no location"));
    }
    let target = from.join(location).map_err(|_| bad("it is not a URL"))?;
    match (from.scheme(), target.scheme()) {
        ("https", "http") => Err(bad("it leaves https for http")),
        (_, "http" | "https") => Ok(target),
        _ => Err(bad("it is not http or https")),
    }
}

/// The error for a status that is no success.
pub(super) fn refused(place: &Place, asked: &Asked, response: &Response) -> RegistryError {
    let (host, what) = (place.host(), asked.what.clone());
    let retry_after = retry_after(response.headers(), SystemTime::now());
    let realm = || {
        auth::challenges(response.headers())
            .into_iter()
            .find_map(|challenge| challenge.parameters.get("realm").cloned())
            .unwrap_or_else(|| "not named".to_owned())
    };
    match response.status().as_u16() {
        401 => RegistryError::Unauthenticated {
            host,
            what,
            realm: realm(),
            given: if place.secret == Secret::None {
                ", which are none"
            } else {
                ""
            },
        },
        403 => RegistryError::Forbidden {
            host,
            what,
            realm: realm(),
        },
        404 => RegistryError::NotFound { host, what },
        429 => RegistryError::RateLimited {
            host,
            what,
            tries: 1,
            retry_after,
        },
        // 408: the server gave up waiting for us.
        status @ (408 | 500..=599) => RegistryError::Server {
            host,
            what,
            status,
            tries: 1,
            retry_after,
        },
        status => RegistryError::Status { host, what, status },
    }
}

/// RFC 9110 §10.2.3: seconds, or a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// The whole body, if it is not larger than `limit`.
pub(super) async fn body(
    place: &Place,
    asked: &Asked,
    response: &mut Response,
    limit: u64,
    timer: &mut StallTimer,
) -> Result<Vec<u8>, RegistryError> {
    let too_large = || RegistryError::TooLarge {
        host: place.host(),
        what: asked.what.clone(),
        limit,
    };
    if response
        .content_length()
        .is_some_and(|length| length > limit)
    {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    loop {
        let chunk = timer
            .wait(response.chunk())
            .await
            .map_err(|late| late.into_error(place.host(), &asked.what))?
            .map_err(|source| transport(place, asked, source))?;
        let Some(chunk) = chunk else { return Ok(bytes) };
        if (bytes.len() as u64).saturating_add(chunk.len() as u64) > limit {
            return Err(too_large());
        }
        bytes.extend_from_slice(&chunk);
        timer
            .progress(chunk.len() as u64)
            .map_err(|late| late.into_error(place.host(), &asked.what))?;
    }
}

/// A failure below HTTP.
pub(super) fn transport(place: &Place, asked: &Asked, source: reqwest::Error) -> RegistryError {
    let hint = match source.is_connect() {
        true => hint(&source, place.endpoint.base.scheme() == "https"),
        false => "",
    };
    RegistryError::Transport {
        host: place.host(),
        what: asked.what.clone(),
        tries: 1,
        hint,
        // The URL may carry a signature of a redirect's target: not for a log.
        source: source.without_url(),
    }
}

/// For tests of this module's parts without a server.
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_in_both_forms() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let given = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, HeaderValue::from_str(text).unwrap());
            retry_after(&headers, now)
        };
        assert_eq!(given("7"), Some(Duration::from_secs(7)));
        assert_eq!(
            given("Sun, 06 Nov 1994 08:49:47 GMT"),
            Some(Duration::from_secs(10))
        );
        assert_eq!(given("Sun, 06 Nov 1994 08:49:07 GMT"), Some(Duration::ZERO));
        assert_eq!(given("soon"), None);
        assert_eq!(given("-1"), None);
    }
}
