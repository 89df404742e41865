//! Sizes of a terminal: JSON objects one after the other, cut anywhere by the transport.

use std::{convert::Infallible, time::Duration};

use bulkhead_proto::agent::{ProcessRef, ResizeTerminalRequest};
use serde::Deserialize;

use crate::{agent::Agent, streaming::channel::Incoming};

const DEADLINE: Duration = Duration::from_secs(10);
/// A size is thirty bytes; what grows to more without being one is none.
const MAX_WAITING: usize = 1024;

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) struct Size {
    #[serde(rename = "Width")]
    width: u16,
    #[serde(rename = "Height")]
    height: u16,
}

/// The last whole size in `waiting`, from which what was read is removed. `Err` if it is no JSON.
fn newest(waiting: &mut Vec<u8>) -> Result<Option<Size>, serde_json::Error> {
    let mut sizes = serde_json::Deserializer::from_slice(waiting).into_iter::<Size>();
    let mut newest = None;
    let mut used = 0;
    loop {
        match sizes.next() {
            Some(Ok(size)) => {
                newest = Some(size);
                used = sizes.byte_offset();
            }
            Some(Err(error)) if !error.is_eof() => return Err(error),
            Some(Err(_)) | None => break,
        }
    }
    waiting.drain(..used);
    Ok(newest)
}

/// Carries sizes to a process until the stream ends; then waits for ever, so that it can stand
/// beside what decides the session's end.
pub(super) async fn follow(
    agent: &Agent,
    process: ProcessRef,
    sizes: Option<Incoming>,
) -> Infallible {
    if let Some(mut sizes) = sizes {
        let mut waiting = Vec::new();
        while let Some(piece) = sizes.next().await {
            waiting.extend_from_slice(&piece);
            let size = match newest(&mut waiting) {
                Ok(size) => size,
                Err(error) => {
                    tracing::debug!(%error, "a client sends what is no terminal size");
                    break;
                }
            };
            if waiting.len() > MAX_WAITING {
                break;
            }
            // A window that is folded up has no size, and a terminal without one confuses programs.
            let Some(size) = size.filter(|size| size.width > 0 && size.height > 0) else {
                continue;
            };
            let request = ResizeTerminalRequest {
                process: Some(process.clone()),
                columns: size.width.into(),
                rows: size.height.into(),
            };
            let resized = agent.call("resize the terminal", DEADLINE, |mut agent| async move {
                agent.resize_terminal(request).await
            });
            if let Err(error) = resized.await {
                tracing::debug!(%error, "a terminal keeps its size");
            }
        }
        // Further sizes have nowhere to go, and the connection must not wait for them.
        drop(sizes);
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_whole_size_counts() {
        let mut waiting = br#"{"Width":80,"Height":24}{"Width":100,"Hei"#.to_vec();
        let size = newest(&mut waiting).unwrap().unwrap();
        assert_eq!((size.width, size.height), (80, 24));
        waiting.extend_from_slice(br#"ght":30}"#);
        let size = newest(&mut waiting).unwrap().unwrap();
        assert_eq!((size.width, size.height), (100, 30));
        assert!(newest(&mut waiting).unwrap().is_none());
        for bad in [
            &b"rows 80"[..],
            br#"{"Width":-1,"Height":4}"#,
            br#"{"Width":70000,"Height":4}"#,
        ] {
            assert!(newest(&mut bad.to_vec()).is_err(), "{bad:?}");
        }
    }
}
