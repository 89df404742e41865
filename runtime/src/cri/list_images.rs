//! ListImages.

use std::sync::Arc;

use bulkhead_images::ImagesError;
use bulkhead_proto::cri as v1;

use super::image_status::to_cri;
use crate::app::App;

/// CRI ListImages, from memory. A filter that names no image of this node gives none.
pub async fn list_images(
    app: Arc<App>,
    request: v1::ListImagesRequest,
) -> Result<v1::ListImagesResponse, ImagesError> {
    let wanted = request
        .filter
        .and_then(|filter| filter.image)
        .unwrap_or_default()
        .image;
    let images = if wanted.is_empty() {
        app.images.list()
    } else {
        app.images.find(&wanted)?.into_iter().collect()
    };
    Ok(v1::ListImagesResponse {
        images: images.iter().map(|image| to_cri(&app, image)).collect(),
    })
}
