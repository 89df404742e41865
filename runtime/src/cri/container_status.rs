//! ContainerStatus.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{app::App, error::Unimplemented};

/// CRI ContainerStatus.
pub async fn container_status(
    _app: Arc<App>,
    _request: v1::ContainerStatusRequest,
) -> Result<v1::ContainerStatusResponse, Unimplemented> {
    Err(Unimplemented {
        what: "ContainerStatus",
    })
}
