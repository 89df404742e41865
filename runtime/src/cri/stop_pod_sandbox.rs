//! StopPodSandbox.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{
    app::App,
    sandbox::{self, SandboxError},
};

/// CRI StopPodSandbox.
pub async fn stop_pod_sandbox(
    app: Arc<App>,
    request: v1::StopPodSandboxRequest,
) -> Result<v1::StopPodSandboxResponse, SandboxError> {
    sandbox::stop(app, &request.pod_sandbox_id).await?;
    Ok(v1::StopPodSandboxResponse {})
}
