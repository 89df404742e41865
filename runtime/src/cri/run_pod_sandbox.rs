//! RunPodSandbox.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{
    app::App,
    sandbox::{self, SandboxError},
};

/// CRI RunPodSandbox.
pub async fn run_pod_sandbox(
    app: Arc<App>,
    request: v1::RunPodSandboxRequest,
) -> Result<v1::RunPodSandboxResponse, SandboxError> {
    let pod_sandbox_id = sandbox::run(app, request).await?;
    Ok(v1::RunPodSandboxResponse { pod_sandbox_id })
}
