//! The time a client gives a request (gRPC's header `grpc-timeout`). tonic ends a request after it, too, but
//! with Cancelled, which a client that is a moment late takes for the answer: gRPC's word for it is
//! DeadlineExceeded.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tonic::{Status, body::Body, codegen::http};
use tower::Service;

/// Ends the requests of a service in time.
#[derive(Debug, Clone)]
pub struct Deadlines<S>(S);

impl<S> Deadlines<S> {
    /// Around this service.
    pub fn new(inner: S) -> Self {
        Self(inner)
    }
}

type Answer<E> = Pin<Box<dyn Future<Output = Result<http::Response<Body>, E>> + Send>>;

impl<S, B> Service<http::Request<B>> for Deadlines<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Answer<S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let header = request.headers().get("grpc-timeout");
        let limit = header.and_then(|text| parse(text.to_str().ok()?));
        let method = request.uri().path().trim_start_matches('/').to_owned();
        let running = self.0.call(request);
        let Some(limit) = limit else {
            return Box::pin(running);
        };
        // It begins here, before tonic's own: which of two that end together is looked at first is then
        // certain.
        let running = tokio::time::timeout(limit, running);
        Box::pin(async move {
            running.await.unwrap_or_else(|_| {
                let late = format!(
                    "context deadline exceeded: {method} was given {limit:?} by its client"
                );
                Ok(Status::deadline_exceeded(late).into_http())
            })
        })
    }
}

/// "PROTOCOL-HTTP2.md": at most eight digits and a unit.
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tonic::Code;
    use tower::{ServiceExt as _, service_fn};

    use super::*;

    async fn asked(timeout: Option<&str>, ends: bool) -> Status {
        let service = service_fn(move |_: http::Request<()>| async move {
            if !ends {
                std::future::pending::<()>().await;
            }
            Ok::<_, Infallible>(Status::not_found("done").into_http())
        });
        let mut request = http::Request::builder().uri("/runtime.v1.RuntimeService/Version");
        if let Some(timeout) = timeout {
            request = request.header("grpc-timeout", timeout);
        }
        let answer = Deadlines::new(service).oneshot(request.body(()).unwrap());
        let answer = answer.await.unwrap();
        Status::from_header_map(answer.headers()).unwrap()
    }

    #[tokio::test]
    async fn a_request_that_takes_longer_than_its_client_waits_has_gone_past_its_deadline() {
        for timeout in ["1m", "20u", "0n"] {
            let status = asked(Some(timeout), false).await;
            assert_eq!(status.code(), Code::DeadlineExceeded);
            let text = status.message();
            assert!(
                text.starts_with("context deadline exceeded: runtime.v1.RuntimeService/Version"),
                "{text}"
            );
        }
        for timeout in [None, Some("1H"), Some("junk")] {
            assert_eq!(asked(timeout, true).await.code(), Code::NotFound);
        }
    }

    #[test]
    fn timeouts_of_every_unit() {
        for (text, expected) in [
            ("0n", Some(Duration::ZERO)),
            ("5u", Some(Duration::from_micros(5))),
            ("99999999m", Some(Duration::from_millis(99_999_999))),
            ("7S", Some(Duration::from_secs(7))),
            ("2M", Some(Duration::from_secs(120))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("", None),
            ("S", None),
            ("5", None),
            ("-5S", None),
            ("+5S", None),
            ("123456789S", None),
            ("5x", None),
            ("5é", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }
}
