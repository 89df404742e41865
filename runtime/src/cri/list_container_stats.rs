//! ListContainerStats.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{
    app::App,
    container::{self, ContainerError},
};

/// CRI ListContainerStats.
pub async fn list_container_stats(
    app: Arc<App>,
    request: v1::ListContainerStatsRequest,
) -> Result<v1::ListContainerStatsResponse, ContainerError> {
    let stats = container::list_stats(&app, request.filter.as_ref()).await;
    Ok(v1::ListContainerStatsResponse { stats })
}
