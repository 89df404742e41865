//! Tokens: the answer to a `Bearer` challenge, from the service it names.

use std::time::{Duration, Instant};

use reqwest::{
    Method, Response, StatusCode, Url,
    header::{self, HeaderMap, HeaderValue},
};

use super::{
    auth::{self, Challenge, Secret, TokenAnswer},
    error::RegistryError,
    request::{self, Asked, MOST_REDIRECTS},
    retry::StallTimer,
    session::{Authorization, Place, Session},
};

const LARGEST_TOKEN_ANSWER: u64 = 1 << 20;

/// A request for a token, as it is sent to the realm and, perhaps, to where that redirects.
struct TokenRequest {
    /// The realm with its query.
    url: Url,
    /// For the realm, and for no other host.
    authorization: Option<HeaderValue>,
    /// The OAuth2 form, which has a refresh token in it: likewise.
    form: Option<String>,
}

impl Session {
    /// The token specification of the distribution project: a GET with scope and service, with
    /// basic authentication if there are credentials; for an identity token the OAuth2 form.
    pub(super) async fn token(
        &self,
        place: &Place,
        asked: &Asked,
        challenge: &Challenge,
        realm: &str,
        timer: &mut StallTimer,
        denied: RegistryError,
    ) -> Result<Authorization, RegistryError> {
        let bad = |why| RegistryError::Token {
            host: place.host(),
            realm: realm.to_owned(),
            why,
        };
        let url = Url::parse(realm).map_err(|_| bad("is not a URL"))?;
        let in_clear = url.scheme() != "https";
        if in_clear && (url.scheme() != "http" || place.endpoint.base.scheme() == "https") {
            return Err(bad(
                "is not reached by https, while the registry is: refused",
            ));
        }
        let scope = challenge
            .parameters
            .get("scope")
            .cloned()
            .unwrap_or_else(|| format!("repository:{}:pull", self.name.repository()));
        let mut query = Vec::new();
        if let Some(service) = challenge.parameters.get("service") {
            query.push(("service", service.as_str()));
        }
        query.push(("scope", scope.as_str()));
        let request = token_request(url, &query, &place.secret)
            .ok_or_else(|| bad("cannot be given these credentials"))?;

        let asked_token = Asked {
            path: String::new(),
            what: format!("a token for {}", asked.what),
            head_only: false,
            accept: None,
        };
        let mut response = send(place, &asked_token, request, timer).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
                return Err(denied);
            }
            _ => return Err(request::refused(place, &asked_token, &response)),
        }
        let bytes = request::body(
            place,
            &asked_token,
            &mut response,
            LARGEST_TOKEN_ANSWER,
            timer,
        )
        .await?;
        let answer: TokenAnswer =
            serde_json::from_slice(&bytes).map_err(|_| bad("did not answer with a token"))?;
        let token = answer
            .token()
            .ok_or_else(|| bad("did not answer with a token"))?;
        let header = auth::bearer(token).ok_or_else(|| bad("gave a token with odd characters"))?;
        // A little early, so that it does not end on the way. An absurd life time is cut.
        let life = u64::try_from(answer.expires_in.unwrap_or(60)).unwrap_or(0);
        let life = life.clamp(20, 86_400) - 10;
        let expires = Instant::now().checked_add(Duration::from_secs(life));
        Ok(Authorization { header, expires })
    }
}

/// `None` for credentials that cannot stand in a header.
fn token_request(mut url: Url, query: &[(&str, &str)], secret: &Secret) -> Option<TokenRequest> {
    if let Secret::Identity(token) = secret {
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "refresh_token")
            .append_pair("client_id", "bulkhead")
            .append_pair("refresh_token", token)
            .extend_pairs(query);
        return Some(TokenRequest {
            url,
            authorization: None,
            form: Some(form.finish()),
        });
    }
    url.query_pairs_mut().extend_pairs(query);
    let authorization = match secret {
        Secret::Basic(user, password) => Some(auth::basic(user, password)?),
        _ => None,
    };
    Some(TokenRequest {
        url,
        authorization,
        form: None,
    })
}

/// Sends it and follows redirects. Credentials go to the realm's own host only; the headers that
/// the configuration has for the registry go wherever that host is asked.
async fn send(
    place: &Place,
    asked: &Asked,
    request: TokenRequest,
    timer: &mut StallTimer,
) -> Result<Response, RegistryError> {
    let realm = request.url.clone();
    let mut url = request.url;
    for _ in 0..=MOST_REDIRECTS {
        let mut headers = HeaderMap::new();
        if url.host_str() == place.endpoint.base.host_str() {
            headers.clone_from(&place.endpoint.headers);
        }
        let trusted = is_as_trusted(&realm, &url);
        if trusted && let Some(authorization) = &request.authorization {
            headers.insert(header::AUTHORIZATION, authorization.clone());
        }
        let mut builder = match &request.form {
            None => place.client.request(Method::GET, url.clone()),
            Some(form) if trusted => {
                headers.insert(
                    header::CONTENT_TYPE,
                    HeaderValue::from_static("application/x-www-form-urlencoded"),
                );
                place
                    .client
                    .request(Method::POST, url.clone())
                    .body(form.clone())
            }
            Some(_) => {
                return Err(RegistryError::BadRedirect {
                    host: place.host(),
                    what: asked.what.clone(),
                    location: url.origin().ascii_serialization(),
                    why: "it would take the identity token to another host",
                });
            }
        };
        builder = builder.headers(headers);
        let response = timer
            .wait(builder.send())
            .await
            .map_err(|late| late.into_error(place.host(), &asked.what))?
            .map_err(|source| request::transport(place, asked, source))?;
        if !request::is_redirect(&response) {
            return Ok(response);
        }
        url = request::redirect_target(place, asked, &url, &response)?;
    }
    Err(RegistryError::Redirects {
        host: place.host(),
        what: asked.what.clone(),
        limit: MOST_REDIRECTS,
    })
}

/// Whether what may be shown to `first` may be shown to `other`: the same origin, or the same
/// host by https instead of http.
fn is_as_trusted(first: &Url, other: &Url) -> bool {
    first.origin() == other.origin()
        || (first.scheme() == "http"
            && other.scheme() == "https"
            && first.host_str() == other.host_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whom_a_token_services_credentials_are_shown_to() {
        let trusted = |first: &str, other: &str| {
            is_as_trusted(&first.parse().unwrap(), &other.parse().unwrap())
        };
        assert!(trusted(
            "https://a.example/token",
            "https://a.example/other"
        ));
        assert!(trusted(
            "https://a.example/token",
            "https://a.example:443/other"
        ));
        assert!(trusted("http://a.example/token", "https://a.example/token"));
        assert!(!trusted(
            "https://a.example/token",
            "http://a.example/token"
        ));
        assert!(!trusted(
            "https://a.example/token",
            "https://b.example/token"
        ));
        assert!(!trusted(
            "http://a.example:1/token",
            "http://a.example:2/token"
        ));
        assert!(!trusted(
            "https://a.example",
            "https://a.example.evil.example"
        ));
    }
}
