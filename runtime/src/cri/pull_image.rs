//! PullImage.

use std::sync::Arc;

use bulkhead_images::{PullSecret, SharedError};
use bulkhead_proto::cri as v1;

use crate::app::App;

/// CRI PullImage. The kubelet sets no deadline; a registry that makes no progress ends the pull,
/// and so does a caller that goes away, unless another waits for the same image.
pub async fn pull_image(
    app: Arc<App>,
    request: v1::PullImageRequest,
) -> Result<v1::PullImageResponse, SharedError> {
    let reference = request.image.unwrap_or_default().image;
    let secret = request.auth.map(pull_secret);
    let image = app.images.pull(&reference, secret.as_ref()).await?;
    Ok(v1::PullImageResponse {
        image_ref: image.id.clone(),
    })
}

fn pull_secret(auth: v1::AuthConfig) -> PullSecret {
    PullSecret {
        username: auth.username,
        password: auth.password,
        auth: auth.auth,
        server_address: auth.server_address,
        identity_token: auth.identity_token,
        registry_token: auth.registry_token,
    }
}
