//! ReopenContainerLog.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{
    app::App,
    container::{self, ContainerError},
};

/// CRI ReopenContainerLog.
pub async fn reopen_container_log(
    app: Arc<App>,
    request: v1::ReopenContainerLogRequest,
) -> Result<v1::ReopenContainerLogResponse, ContainerError> {
    container::reopen_log(&app, &request.container_id).await?;
    Ok(v1::ReopenContainerLogResponse {})
}
