//! PullImage.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{app::App, images::SharedError};

/// CRI PullImage. The kubelet sets no deadline; a registry that makes no progress ends the pull,
/// and so does a caller that goes away, unless another waits for the same image.
pub async fn pull_image(
    app: Arc<App>,
    request: v1::PullImageRequest,
) -> Result<v1::PullImageResponse, SharedError> {
    let reference = request.image.unwrap_or_default().image;
    let image = app.images.pull(&reference, request.auth.as_ref()).await?;
    Ok(v1::PullImageResponse {
        image_ref: image.id.clone(),
    })
}
