//! Exec.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{
    app::App,
    streaming::{self, StreamingError},
};

/// CRI Exec.
pub async fn exec(
    app: Arc<App>,
    request: v1::ExecRequest,
) -> Result<v1::ExecResponse, StreamingError> {
    let url = streaming::exec(&app, request)?;
    Ok(v1::ExecResponse { url })
}
