//! ExecSync.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{app::App, error::Unimplemented};

/// CRI ExecSync.
pub async fn exec_sync(
    _app: Arc<App>,
    _request: v1::ExecSyncRequest,
) -> Result<v1::ExecSyncResponse, Unimplemented> {
    Err(Unimplemented { what: "ExecSync" })
}
