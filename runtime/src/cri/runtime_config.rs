//! RuntimeConfig.

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
