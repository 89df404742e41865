//! CreateContainer.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{app::App, error::Unimplemented};

/// CRI CreateContainer.
pub async fn create_container(
    _app: Arc<App>,
    _request: v1::CreateContainerRequest,
) -> Result<v1::CreateContainerResponse, Unimplemented> {
    Err(Unimplemented {
        what: "CreateContainer",
    })
}
