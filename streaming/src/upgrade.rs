//! Which protocol a client and the server speak: from the headers of its request, pure.

use http::{HeaderMap, StatusCode, header};

/// The name in `X-Stream-Protocol-Version`.
pub(crate) const PROTOCOL_HEADER: &str = "x-stream-protocol-version";
/// Where a refusal says what would have been accepted.
pub(crate) const ACCEPTED_HEADER: &str = "x-accepted-stream-protocol-versions";
pub(crate) const SPDY: &str = "SPDY/3.1";

const REMOTE_SPDY: &[&str] = &[
    "v4.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
    "channel.k8s.io",
];
const FORWARD_SPDY: &[&str] = &["portforward.k8s.io"];
const REMOTE_WEBSOCKET: &[&str] = &[
    "",
    "channel.k8s.io",
    "base64.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "v5.channel.k8s.io",
];
/// SPDY inside a WebSocket (kubectl and crictl), and before it, where ports are fixed beforehand.
pub(crate) const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const FORWARD_WEBSOCKET: &[&str] = &[TUNNEL, "", "v4.channel.k8s.io", "v4.base64.channel.k8s.io"];

/// What is agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Upgrade {
    /// SPDY/3.1 with this sub-protocol.
    Spdy(&'static str),
    /// WebSocket with this sub-protocol; `accept` answers the client's key.
    WebSocket {
        protocol: &'static str,
        accept: String,
    },
}

/// Why there is no agreement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) text: String,
    /// What would have been accepted.
    pub(crate) accepted: &'static [&'static str],
}

fn refusal(status: StatusCode, text: impl Into<String>) -> Refusal {
    Refusal {
        status,
        text: text.into(),
        accepted: &[],
    }
}

/// The values of a header that is a list.
fn list(headers: &HeaderMap, name: impl header::AsHeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

/// Agrees on a protocol: the first of the client's that is spoken here.
pub(crate) fn negotiate(headers: &HeaderMap, forward: bool) -> Result<Upgrade, Refusal> {
    let has = |name, wanted: &str| list(headers, name).any(|v| v.eq_ignore_ascii_case(wanted));
    if !has(header::CONNECTION, "upgrade") {
        return Err(refusal(
            StatusCode::BAD_REQUEST,
            "this URL needs an upgrade to SPDY/3.1 or WebSocket; the request asks for none",
        ));
    }
    if has(header::UPGRADE, SPDY) {
        return spdy(headers, forward);
    }
    if has(header::UPGRADE, "websocket") {
        return websocket(headers, forward);
    }
    Err(refusal(
        StatusCode::BAD_REQUEST,
        "this URL speaks SPDY/3.1 and WebSocket, not what the request's Upgrade header names",
    ))
}

fn spdy(headers: &HeaderMap, forward: bool) -> Result<Upgrade, Refusal> {
    let ours = if forward { FORWARD_SPDY } else { REMOTE_SPDY };
    let theirs: Vec<_> = list(headers, PROTOCOL_HEADER).collect();
    if theirs.is_empty() {
        return Err(refusal(
            StatusCode::BAD_REQUEST,
            "the header X-Stream-Protocol-Version is missing",
        ));
    }
    choose(&theirs, ours)
        .map(Upgrade::Spdy)
        .ok_or_else(|| Refusal {
            status: StatusCode::FORBIDDEN,
            text: "none of the client's protocols is spoken here".to_owned(),
            accepted: ours,
        })
}

fn websocket(headers: &HeaderMap, forward: bool) -> Result<Upgrade, Refusal> {
    let bad = |text: &str| refusal(StatusCode::BAD_REQUEST, text);
    let version = headers.get(header::SEC_WEBSOCKET_VERSION);
    if version.is_none_or(|version| version != "13") {
        return Err(bad("Sec-WebSocket-Version must be 13"));
    }
    let key = headers
        .get(header::SEC_WEBSOCKET_KEY)
        .ok_or_else(|| bad("the header Sec-WebSocket-Key is missing"))?;
    let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
    let ours = if forward {
        FORWARD_WEBSOCKET
    } else {
        REMOTE_WEBSOCKET
    };
    let mut theirs: Vec<_> = list(headers, header::SEC_WEBSOCKET_PROTOCOL).collect();
    if theirs.is_empty() {
        theirs.push("");
    }
    let protocol = choose(&theirs, ours).ok_or_else(|| Refusal {
        status: StatusCode::BAD_REQUEST,
        text: "none of the client's protocols is spoken here".to_owned(),
        accepted: ours,
    })?;
    Ok(Upgrade::WebSocket { protocol, accept })
}

fn choose(theirs: &[&str], ours: &'static [&'static str]) -> Option<&'static str> {
    theirs
        .iter()
        .find_map(|wanted| ours.iter().find(|known| *known == wanted).copied())
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            );
        }
        map
    }

    #[test]
    fn the_first_protocol_of_the_client_that_is_known_is_taken() {
        // As kubectl and crictl of Kubernetes 1.36 send them.
        let kubectl = headers(&[
            ("connection", "Upgrade"),
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "v5.channel.k8s.io"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
            ("x-stream-protocol-version", "channel.k8s.io"),
        ]);
        let v4 = Ok(Upgrade::Spdy("v4.channel.k8s.io"));
        assert_eq!(negotiate(&kubectl, false), v4);
        let refused = negotiate(&kubectl, true).unwrap_err();
        assert_eq!(refused.status, StatusCode::FORBIDDEN);
        assert_eq!(refused.accepted, ["portforward.k8s.io"]);
    }

    #[test]
    fn a_websocket_key_is_answered() {
        // The example of RFC 6455, §1.3.
        let browser = headers(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-protocol", "other, v5.channel.k8s.io"),
        ]);
        let agreed = Upgrade::WebSocket {
            protocol: "v5.channel.k8s.io",
            accept: "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".to_owned(),
        };
        assert_eq!(negotiate(&browser, false), Ok(agreed));
        let refused = negotiate(&browser, true).unwrap_err();
        assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    }

    #[test]
    fn half_an_upgrade_is_refused() {
        let spdy = ("upgrade", "SPDY/3.1");
        let upgrade = ("connection", "Upgrade");
        let version = ("x-stream-protocol-version", "v4.channel.k8s.io");
        for half in [
            headers(&[]),
            headers(&[spdy, version]),
            headers(&[upgrade, version]),
            headers(&[upgrade, spdy]),
            headers(&[upgrade, ("upgrade", "h2c")]),
            headers(&[upgrade, ("upgrade", "websocket")]),
            headers(&[
                upgrade,
                ("upgrade", "websocket"),
                ("sec-websocket-version", "13"),
            ]),
        ] {
            let refused = negotiate(&half, false).unwrap_err();
            assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{half:?}");
        }
    }
}
