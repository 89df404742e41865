//! RemovePodSandbox.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{app::App, error::Unimplemented};

/// CRI RemovePodSandbox.
pub async fn remove_pod_sandbox(
    _app: Arc<App>,
    _request: v1::RemovePodSandboxRequest,
) -> Result<v1::RemovePodSandboxResponse, Unimplemented> {
    Err(Unimplemented {
        what: "RemovePodSandbox",
    })
}
