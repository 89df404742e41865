//! ImageFsInfo.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{app::App, error::Unimplemented};

/// CRI ImageFsInfo.
pub async fn image_fs_info(
    _app: Arc<App>,
    _request: v1::ImageFsInfoRequest,
) -> Result<v1::ImageFsInfoResponse, Unimplemented> {
    Err(Unimplemented {
        what: "ImageFsInfo",
    })
}
