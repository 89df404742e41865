//! ListContainers.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{
    app::App,
    container::{self, ContainerError},
};

/// CRI ListContainers.
pub async fn list_containers(
    app: Arc<App>,
    request: v1::ListContainersRequest,
) -> Result<v1::ListContainersResponse, ContainerError> {
    let containers = container::list(&app, request.filter.as_ref())?;
    Ok(v1::ListContainersResponse { containers })
}
