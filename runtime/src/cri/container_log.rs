//! ReopenContainerLog.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{app::App, error::Unimplemented};

/// CRI ReopenContainerLog.
pub async fn reopen_container_log(
    _app: Arc<App>,
    _request: v1::ReopenContainerLogRequest,
) -> Result<v1::ReopenContainerLogResponse, Unimplemented> {
    Err(Unimplemented {
        what: "ReopenContainerLog",
    })
}
