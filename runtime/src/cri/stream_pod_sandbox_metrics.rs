//! StreamPodSandboxMetrics (KEP-5825).

use std::{convert::Infallible, sync::Arc};

use bulkhead_proto::cri as v1;

use super::response::{ResponseStream, chunked};
use crate::{app::App, stats};

/// CRI StreamPodSandboxMetrics.
pub async fn stream_pod_sandbox_metrics(
    app: Arc<App>,
    _request: v1::StreamPodSandboxMetricsRequest,
) -> Result<ResponseStream<v1::StreamPodSandboxMetricsResponse>, Infallible> {
    let items = stats::list_metrics(&app).await;
    Ok(chunked(items, |pod_sandbox_metrics| {
        v1::StreamPodSandboxMetricsResponse {
            pod_sandbox_metrics,
        }
    }))
}
