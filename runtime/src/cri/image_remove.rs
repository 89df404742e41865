//! RemoveImage.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{app::App, error::Unimplemented};

/// CRI RemoveImage.
pub async fn remove_image(
    _app: Arc<App>,
    _request: v1::RemoveImageRequest,
) -> Result<v1::RemoveImageResponse, Unimplemented> {
    Err(Unimplemented {
        what: "RemoveImage",
    })
}
