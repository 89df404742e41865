//! Version.

use std::{convert::Infallible, sync::Arc};

use bulkhead_proto::cri as v1;

use crate::app::App;

/// The kubelet's runtime API version, which is not the CRI's: fixed since the first CRI.
const KUBELET_API: &str = "0.1.0";

/// CRI Version. The kubelet takes no empty field.
pub async fn version(
    _app: Arc<App>,
    _request: v1::VersionRequest,
) -> Result<v1::VersionResponse, Infallible> {
    Ok(v1::VersionResponse {
        version: KUBELET_API.to_owned(),
        runtime_name: "bulkhead".to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: "v1".to_owned(),
    })
}
