//! ListContainers.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{app::App, error::Unimplemented};

/// CRI ListContainers.
pub async fn list_containers(
    _app: Arc<App>,
    _request: v1::ListContainersRequest,
) -> Result<v1::ListContainersResponse, Unimplemented> {
    Err(Unimplemented {
        what: "ListContainers",
    })
}
