//! UpdateRuntimeConfig, RuntimeConfig.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{app::App, error::Unimplemented};

/// CRI UpdateRuntimeConfig.
pub async fn update_runtime_config(
    _app: Arc<App>,
    _request: v1::UpdateRuntimeConfigRequest,
) -> Result<v1::UpdateRuntimeConfigResponse, Unimplemented> {
    Err(Unimplemented {
        what: "UpdateRuntimeConfig",
    })
}

/// CRI RuntimeConfig.
pub async fn runtime_config(
    _app: Arc<App>,
    _request: v1::RuntimeConfigRequest,
) -> Result<v1::RuntimeConfigResponse, Unimplemented> {
    Err(Unimplemented {
        what: "RuntimeConfig",
    })
}
