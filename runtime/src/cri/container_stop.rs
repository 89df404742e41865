//! StopContainer.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{app::App, error::Unimplemented};

/// CRI StopContainer.
pub async fn stop_container(
    _app: Arc<App>,
    _request: v1::StopContainerRequest,
) -> Result<v1::StopContainerResponse, Unimplemented> {
    Err(Unimplemented {
        what: "StopContainer",
    })
}
