//! PodSandboxStatus.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{
    app::App,
    sandbox::{self, SandboxError},
};

/// CRI PodSandboxStatus.
pub async fn pod_sandbox_status(
    app: Arc<App>,
    request: v1::PodSandboxStatusRequest,
) -> Result<v1::PodSandboxStatusResponse, SandboxError> {
    sandbox::status(&app, &request.pod_sandbox_id, request.verbose).await
}
