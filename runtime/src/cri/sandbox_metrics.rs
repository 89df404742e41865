//! ListMetricDescriptors and ListPodSandboxMetrics.

use std::{convert::Infallible, sync::Arc};

use bulkhead_proto::cri as v1;

use crate::{app::App, stats};

/// CRI ListMetricDescriptors.
pub async fn list_metric_descriptors(
    _app: Arc<App>,
    _request: v1::ListMetricDescriptorsRequest,
) -> Result<v1::ListMetricDescriptorsResponse, Infallible> {
    Ok(v1::ListMetricDescriptorsResponse {
        descriptors: stats::descriptors(),
    })
}

/// CRI ListPodSandboxMetrics.
pub async fn list_pod_sandbox_metrics(
    app: Arc<App>,
    _request: v1::ListPodSandboxMetricsRequest,
) -> Result<v1::ListPodSandboxMetricsResponse, Infallible> {
    let pod_metrics = stats::list_metrics(&app).await;
    Ok(v1::ListPodSandboxMetricsResponse { pod_metrics })
}
