//! ListImages.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{app::App, error::Unimplemented};

/// CRI ListImages.
pub async fn list_images(
    _app: Arc<App>,
    _request: v1::ListImagesRequest,
) -> Result<v1::ListImagesResponse, Unimplemented> {
    Err(Unimplemented { what: "ListImages" })
}
