//! PodSandboxStatus.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{app::App, error::Unimplemented};

/// CRI PodSandboxStatus.
pub async fn pod_sandbox_status(
    _app: Arc<App>,
    _request: v1::PodSandboxStatusRequest,
) -> Result<v1::PodSandboxStatusResponse, Unimplemented> {
    Err(Unimplemented {
        what: "PodSandboxStatus",
    })
}
