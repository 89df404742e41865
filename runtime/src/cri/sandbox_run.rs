//! RunPodSandbox.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{app::App, error::Unimplemented};

/// CRI RunPodSandbox.
pub async fn run_pod_sandbox(
    _app: Arc<App>,
    _request: v1::RunPodSandboxRequest,
) -> Result<v1::RunPodSandboxResponse, Unimplemented> {
    Err(Unimplemented {
        what: "RunPodSandbox",
    })
}
