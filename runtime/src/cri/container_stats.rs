//! ContainerStats.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{
    app::App,
    container::{self, ContainerError},
};

/// CRI ContainerStats.
pub async fn container_stats(
    app: Arc<App>,
    request: v1::ContainerStatsRequest,
) -> Result<v1::ContainerStatsResponse, ContainerError> {
    let stats = container::stats(&app, &request.container_id).await?;
    Ok(v1::ContainerStatsResponse { stats: Some(stats) })
}
