//! StopPodSandbox.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{app::App, error::Unimplemented};

/// CRI StopPodSandbox.
pub async fn stop_pod_sandbox(
    _app: Arc<App>,
    _request: v1::StopPodSandboxRequest,
) -> Result<v1::StopPodSandboxResponse, Unimplemented> {
    Err(Unimplemented {
        what: "StopPodSandbox",
    })
}
