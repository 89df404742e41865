//! Status.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{app::App, error::Unimplemented};

/// CRI Status.
pub async fn status(
    _app: Arc<App>,
    _request: v1::StatusRequest,
) -> Result<v1::StatusResponse, Unimplemented> {
    Err(Unimplemented { what: "Status" })
}
