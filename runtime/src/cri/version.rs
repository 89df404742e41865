//! Version.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{app::App, error::Unimplemented};

/// CRI Version.
pub async fn version(
    _app: Arc<App>,
    _request: v1::VersionRequest,
) -> Result<v1::VersionResponse, Unimplemented> {
    Err(Unimplemented { what: "Version" })
}
