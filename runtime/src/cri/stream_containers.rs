//! StreamContainers (KEP-5825).

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use super::response::{ResponseStream, chunked};
use crate::{
    app::App,
    container::{self, ContainerError},
};

/// CRI StreamContainers.
pub async fn stream_containers(
    app: Arc<App>,
    request: v1::StreamContainersRequest,
) -> Result<ResponseStream<v1::StreamContainersResponse>, ContainerError> {
    let items = container::list(&app, request.filter.as_ref())?;
    Ok(chunked(items, |containers| v1::StreamContainersResponse {
        containers,
    }))
}
