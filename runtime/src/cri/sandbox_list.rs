//! ListPodSandbox.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{app::App, error::Unimplemented};

/// CRI ListPodSandbox.
pub async fn list_pod_sandbox(
    _app: Arc<App>,
    _request: v1::ListPodSandboxRequest,
) -> Result<v1::ListPodSandboxResponse, Unimplemented> {
    Err(Unimplemented {
        what: "ListPodSandbox",
    })
}
