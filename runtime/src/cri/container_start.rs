//! StartContainer.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{app::App, error::Unimplemented};

/// CRI StartContainer.
pub async fn start_container(
    _app: Arc<App>,
    _request: v1::StartContainerRequest,
) -> Result<v1::StartContainerResponse, Unimplemented> {
    Err(Unimplemented {
        what: "StartContainer",
    })
}
