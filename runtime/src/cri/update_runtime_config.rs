//! UpdateRuntimeConfig.

use std::{convert::Infallible, sync::Arc};

use bulkhead_proto::cri as v1;

use crate::app::App;

/// CRI UpdateRuntimeConfig: the node's pod CIDR. Kept for the status; pods get their addresses
/// from CNI's own configuration.
pub async fn update_runtime_config(
    app: Arc<App>,
    request: v1::UpdateRuntimeConfigRequest,
) -> Result<v1::UpdateRuntimeConfigResponse, Infallible> {
    let network = request
        .runtime_config
        .and_then(|config| config.network_config);
    if let Some(network) = network {
        app.set_pod_cidr(network.pod_cidr);
    }
    Ok(v1::UpdateRuntimeConfigResponse {})
}
