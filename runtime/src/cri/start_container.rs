//! StartContainer.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{
    app::App,
    container::{self, ContainerError},
};

/// CRI StartContainer.
pub async fn start_container(
    app: Arc<App>,
    request: v1::StartContainerRequest,
) -> Result<v1::StartContainerResponse, ContainerError> {
    container::start(app, &request.container_id).await?;
    Ok(v1::StartContainerResponse {})
}
