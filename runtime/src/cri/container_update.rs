//! UpdateContainerResources.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{app::App, error::Unimplemented};

/// CRI UpdateContainerResources.
pub async fn update_container_resources(
    _app: Arc<App>,
    _request: v1::UpdateContainerResourcesRequest,
) -> Result<v1::UpdateContainerResourcesResponse, Unimplemented> {
    Err(Unimplemented {
        what: "UpdateContainerResources",
    })
}
