//! ContainerStats, ListContainerStats.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{app::App, error::Unimplemented};

/// CRI ContainerStats.
pub async fn container_stats(
    _app: Arc<App>,
    _request: v1::ContainerStatsRequest,
) -> Result<v1::ContainerStatsResponse, Unimplemented> {
    Err(Unimplemented {
        what: "ContainerStats",
    })
}

/// CRI ListContainerStats.
pub async fn list_container_stats(
    _app: Arc<App>,
    _request: v1::ListContainerStatsRequest,
) -> Result<v1::ListContainerStatsResponse, Unimplemented> {
    Err(Unimplemented {
        what: "ListContainerStats",
    })
}
