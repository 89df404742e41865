//! StopContainer.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{
    app::App,
    container::{self, ContainerError},
};

/// CRI StopContainer.
pub async fn stop_container(
    app: Arc<App>,
    request: v1::StopContainerRequest,
) -> Result<v1::StopContainerResponse, ContainerError> {
    container::stop(&app, &request.container_id, request.timeout).await?;
    Ok(v1::StopContainerResponse {})
}
