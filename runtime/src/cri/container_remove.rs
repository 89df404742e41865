//! RemoveContainer.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{app::App, error::Unimplemented};

/// CRI RemoveContainer.
pub async fn remove_container(
    _app: Arc<App>,
    _request: v1::RemoveContainerRequest,
) -> Result<v1::RemoveContainerResponse, Unimplemented> {
    Err(Unimplemented {
        what: "RemoveContainer",
    })
}
