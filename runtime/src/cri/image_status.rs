//! ImageStatus.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{app::App, error::Unimplemented};

/// CRI ImageStatus.
pub async fn image_status(
    _app: Arc<App>,
    _request: v1::ImageStatusRequest,
) -> Result<v1::ImageStatusResponse, Unimplemented> {
    Err(Unimplemented {
        what: "ImageStatus",
    })
}
