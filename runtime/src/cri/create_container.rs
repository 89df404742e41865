//! CreateContainer.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{
    app::App,
    container::{self, ContainerError},
};

/// CRI CreateContainer.
pub async fn create_container(
    app: Arc<App>,
    request: v1::CreateContainerRequest,
) -> Result<v1::CreateContainerResponse, ContainerError> {
    let container_id = container::create(app, request).await?;
    Ok(v1::CreateContainerResponse { container_id })
}
