//! ContainerStatus.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{
    app::App,
    container::{self, ContainerError},
};

/// CRI ContainerStatus.
pub async fn container_status(
    app: Arc<App>,
    request: v1::ContainerStatusRequest,
) -> Result<v1::ContainerStatusResponse, ContainerError> {
    container::status(&app, &request.container_id, request.verbose)
}
