//! ImageFsInfo.

use std::sync::Arc;

use bulkhead_images::{ImagesError, disk_usage::Usage};
use bulkhead_proto::cri as v1;

use crate::app::App;

/// CRI ImageFsInfo: the layers' files, and the pods' writable disks.
pub async fn image_fs_info(
    app: Arc<App>,
    _request: v1::ImageFsInfoRequest,
) -> Result<v1::ImageFsInfoResponse, ImagesError> {
    let (images, pods) = app.images.usage().await?;
    Ok(v1::ImageFsInfoResponse {
        image_filesystems: vec![to_cri(images)],
        container_filesystems: vec![to_cri(pods)],
    })
}

fn to_cri(usage: Usage) -> v1::FilesystemUsage {
    v1::FilesystemUsage {
        timestamp: usage.timestamp,
        fs_id: Some(v1::FilesystemIdentifier {
            mountpoint: usage.mountpoint.to_string_lossy().into_owned(),
        }),
        used_bytes: Some(v1::UInt64Value {
            value: usage.used_bytes,
        }),
        inodes_used: Some(v1::UInt64Value {
            value: usage.inodes,
        }),
    }
}
