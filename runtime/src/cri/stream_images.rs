//! StreamImages (KEP-5825).

use std::sync::Arc;

use bulkhead_images::ImagesError;
use bulkhead_proto::cri as v1;

use super::{
    list_images::list_images,
    response::{ResponseStream, chunked},
};
use crate::app::App;

/// CRI StreamImages.
pub async fn stream_images(
    app: Arc<App>,
    request: v1::StreamImagesRequest,
) -> Result<ResponseStream<v1::StreamImagesResponse>, ImagesError> {
    let list = v1::ListImagesRequest {
        filter: request.filter,
    };
    let items = list_images(app, list).await?.images;
    Ok(chunked(items, |images| v1::StreamImagesResponse { images }))
}
