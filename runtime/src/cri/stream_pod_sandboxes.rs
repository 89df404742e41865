//! StreamPodSandboxes (KEP-5825).

use std::{convert::Infallible, sync::Arc};

use bulkhead_proto::cri as v1;

use super::response::{ResponseStream, chunked};
use crate::{app::App, sandbox};

/// CRI StreamPodSandboxes.
pub async fn stream_pod_sandboxes(
    app: Arc<App>,
    request: v1::StreamPodSandboxesRequest,
) -> Result<ResponseStream<v1::StreamPodSandboxesResponse>, Infallible> {
    let items = sandbox::list(&app, request.filter.as_ref());
    Ok(chunked(items, |pod_sandboxes| {
        v1::StreamPodSandboxesResponse { pod_sandboxes }
    }))
}
