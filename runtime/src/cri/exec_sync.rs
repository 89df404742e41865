//! ExecSync.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{
    app::App,
    container::{self, ContainerError},
};

/// CRI ExecSync.
pub async fn exec_sync(
    app: Arc<App>,
    request: v1::ExecSyncRequest,
) -> Result<v1::ExecSyncResponse, ContainerError> {
    let output =
        container::exec_sync(&app, &request.container_id, request.cmd, request.timeout).await?;
    Ok(v1::ExecSyncResponse {
        stdout: output.stdout,
        stderr: output.stderr,
        exit_code: output.exit_code,
    })
}
