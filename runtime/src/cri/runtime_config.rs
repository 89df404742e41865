//! RuntimeConfig and UpdateRuntimeConfig: what daemon and kubelet tell each other of the node.

use std::{convert::Infallible, sync::Arc};

use bulkhead_proto::cri as v1;

use crate::{app::App, cgroup::CgroupDriver};

/// CRI RuntimeConfig: which cgroup driver the kubelet is to use.
pub async fn runtime_config(
    app: Arc<App>,
    _request: v1::RuntimeConfigRequest,
) -> Result<v1::RuntimeConfigResponse, Infallible> {
    let driver = match app.config.cgroup.driver {
        CgroupDriver::Systemd => v1::CgroupDriver::Systemd,
        CgroupDriver::Cgroupfs => v1::CgroupDriver::Cgroupfs,
    };
    let linux = v1::LinuxRuntimeConfiguration {
        cgroup_driver: driver.into(),
    };
    Ok(v1::RuntimeConfigResponse { linux: Some(linux) })
}

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
