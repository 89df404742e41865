//! PullImage.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{app::App, error::Unimplemented};

/// CRI PullImage.
pub async fn pull_image(
    _app: Arc<App>,
    _request: v1::PullImageRequest,
) -> Result<v1::PullImageResponse, Unimplemented> {
    Err(Unimplemented { what: "PullImage" })
}
