//! RemoveContainer.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{
    app::App,
    container::{self, ContainerError},
};

/// CRI RemoveContainer.
pub async fn remove_container(
    app: Arc<App>,
    request: v1::RemoveContainerRequest,
) -> Result<v1::RemoveContainerResponse, ContainerError> {
    container::remove(app, &request.container_id).await?;
    Ok(v1::RemoveContainerResponse {})
}
