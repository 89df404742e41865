//! StreamContainerStats (KEP-5825).

use std::{convert::Infallible, sync::Arc};

use bulkhead_proto::cri as v1;

use super::response::{ResponseStream, chunked};
use crate::{app::App, container};

/// CRI StreamContainerStats.
pub async fn stream_container_stats(
    app: Arc<App>,
    request: v1::StreamContainerStatsRequest,
) -> Result<ResponseStream<v1::StreamContainerStatsResponse>, Infallible> {
    let items = container::list_stats(&app, request.filter.as_ref()).await;
    Ok(chunked(items, |container_stats| {
        v1::StreamContainerStatsResponse { container_stats }
    }))
}
