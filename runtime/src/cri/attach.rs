//! Attach.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{
    app::App,
    streaming::{self, StreamingError},
};

/// CRI Attach.
pub async fn attach(
    app: Arc<App>,
    request: v1::AttachRequest,
) -> Result<v1::AttachResponse, StreamingError> {
    let url = streaming::attach(&app, request)?;
    Ok(v1::AttachResponse { url })
}
