//! A terminal's size follows the client's window.

use std::{convert::Infallible, time::Duration};

use bulkhead_proto::agent::{ProcessRef, ResizeTerminalRequest};
use bulkhead_streaming::TerminalSizes;

use crate::agent::Agent;

const DEADLINE: Duration = Duration::from_secs(10);

/// Carries sizes to a process until the stream ends; then waits for ever, so that it can stand
/// beside what decides the session's end.
pub(super) async fn follow(
    agent: &Agent,
    process: ProcessRef,
    sizes: Option<TerminalSizes>,
) -> Infallible {
    if let Some(mut sizes) = sizes {
        while let Some(size) = sizes.next().await {
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
