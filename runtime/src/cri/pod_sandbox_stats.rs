//! PodSandboxStats.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{app::App, sandbox::SandboxError, stats};

/// CRI PodSandboxStats.
pub async fn pod_sandbox_stats(
    app: Arc<App>,
    request: v1::PodSandboxStatsRequest,
) -> Result<v1::PodSandboxStatsResponse, SandboxError> {
    let stats = stats::pod(&app, &request.pod_sandbox_id).await?;
    Ok(v1::PodSandboxStatsResponse { stats: Some(stats) })
}
