//! What these tests share: configurations of pods and containers.

use std::path::Path;

use bulkhead_proto::cri::{Mount, NamespaceOption, PodSandboxConfig};

use crate::cri::pod;

/// The handler.
pub(super) const HOST: &str = "host";

/// A pod that may have privileged containers.
pub(super) fn privileged_pod(config: &PodSandboxConfig) -> PodSandboxConfig {
    let mut config = config.clone();
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().privileged = true;
    config
}

/// A pod in some of the node's namespaces.
pub(super) fn in_namespaces(name: &str, options: NamespaceOption) -> PodSandboxConfig {
    let mut config = pod(name);
    let linux = config.linux.get_or_insert_default();
    let security = linux.security_context.get_or_insert_default();
    security.namespace_options = Some(options);
    config
}

pub(super) fn bind(host: impl AsRef<Path>, at: &str, readonly: bool) -> Mount {
    Mount {
        host_path: host.as_ref().display().to_string(),
        container_path: at.to_owned(),
        readonly,
        ..Mount::default()
    }
}
