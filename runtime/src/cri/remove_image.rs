//! RemoveImage.

use std::sync::Arc;

use bulkhead_images::ImagesError;
use bulkhead_proto::cri as v1;

use crate::app::App;

/// CRI RemoveImage: by any of the image's names, all of them go. Idempotent.
pub async fn remove_image(
    app: Arc<App>,
    request: v1::RemoveImageRequest,
) -> Result<v1::RemoveImageResponse, ImagesError> {
    let reference = request.image.unwrap_or_default().image;
    app.images.remove(&reference).await?;
    Ok(v1::RemoveImageResponse {})
}
