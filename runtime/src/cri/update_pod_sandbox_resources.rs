//! UpdatePodSandboxResources.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{
    app::App,
    sandbox::{self, SandboxError},
};

/// CRI UpdatePodSandboxResources.
pub async fn update_pod_sandbox_resources(
    app: Arc<App>,
    request: v1::UpdatePodSandboxResourcesRequest,
) -> Result<v1::UpdatePodSandboxResourcesResponse, SandboxError> {
    sandbox::update(app, request).await?;
    Ok(v1::UpdatePodSandboxResourcesResponse {})
}
