//! ListPodSandboxStats.

use std::{convert::Infallible, sync::Arc};

use bulkhead_proto::cri as v1;

use crate::{app::App, stats};

/// CRI ListPodSandboxStats.
pub async fn list_pod_sandbox_stats(
    app: Arc<App>,
    request: v1::ListPodSandboxStatsRequest,
) -> Result<v1::ListPodSandboxStatsResponse, Infallible> {
    let stats = stats::list_pods(&app, request.filter.as_ref()).await;
    Ok(v1::ListPodSandboxStatsResponse { stats })
}
