//! RemovePodSandbox.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{
    app::App,
    sandbox::{self, SandboxError},
};

/// CRI RemovePodSandbox.
pub async fn remove_pod_sandbox(
    app: Arc<App>,
    request: v1::RemovePodSandboxRequest,
) -> Result<v1::RemovePodSandboxResponse, SandboxError> {
    sandbox::remove(app, &request.pod_sandbox_id).await?;
    Ok(v1::RemovePodSandboxResponse {})
}
