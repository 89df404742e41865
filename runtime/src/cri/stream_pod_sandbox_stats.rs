//! StreamPodSandboxStats (KEP-5825).

use std::{convert::Infallible, sync::Arc};

use bulkhead_proto::cri as v1;

use super::response::{ResponseStream, chunked};
use crate::{app::App, stats};

/// CRI StreamPodSandboxStats.
pub async fn stream_pod_sandbox_stats(
    app: Arc<App>,
    request: v1::StreamPodSandboxStatsRequest,
) -> Result<ResponseStream<v1::StreamPodSandboxStatsResponse>, Infallible> {
    let items = stats::list_pods(&app, request.filter.as_ref()).await;
    Ok(chunked(items, |pod_sandbox_stats| {
        v1::StreamPodSandboxStatsResponse { pod_sandbox_stats }
    }))
}
