//! ListPodSandboxMetrics.

use std::{convert::Infallible, sync::Arc};

use bulkhead_proto::cri as v1;

use crate::{app::App, stats};

/// CRI ListPodSandboxMetrics.
pub async fn list_pod_sandbox_metrics(
    app: Arc<App>,
    _request: v1::ListPodSandboxMetricsRequest,
) -> Result<v1::ListPodSandboxMetricsResponse, Infallible> {
    let pod_metrics = stats::list_metrics(&app).await;
    Ok(v1::ListPodSandboxMetricsResponse { pod_metrics })
}
