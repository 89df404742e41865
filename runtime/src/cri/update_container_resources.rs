//! UpdateContainerResources.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{
    app::App,
    container::{self, ContainerError},
};

/// CRI UpdateContainerResources.
pub async fn update_container_resources(
    app: Arc<App>,
    request: v1::UpdateContainerResourcesRequest,
) -> Result<v1::UpdateContainerResourcesResponse, ContainerError> {
    let linux = request.linux.ok_or_else(|| ContainerError::Invalid {
        field: "linux",
        what: "is missing: guests run Linux".to_owned(),
    })?;
    container::update(&app, &request.container_id, linux).await?;
    Ok(v1::UpdateContainerResourcesResponse {})
}
