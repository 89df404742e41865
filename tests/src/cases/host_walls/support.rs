//! What these tests share: configurations of pods and containers.

use std::path::Path;

use bulkhead_proto::cri::{
    Capability, ContainerConfig, LinuxContainerSecurityContext, Mount, NamespaceOption,
    PodSandboxConfig, SecurityProfile, security_profile::ProfileType,
};

use crate::cri::pod;

/// The handler.
pub(super) const HOST: &str = "host";

pub(super) fn with(
    mut config: ContainerConfig,
    security: LinuxContainerSecurityContext,
) -> ContainerConfig {
    config
        .linux
        .get_or_insert_default()
        .security_context
        .replace(security);
    config
}

pub(super) fn named(kind: ProfileType) -> Option<SecurityProfile> {
    Some(SecurityProfile {
        profile_type: kind.into(),
        ..SecurityProfile::default()
    })
}

pub(super) fn capabilities(add: &[&str], drop: &[&str]) -> Option<Capability> {
    let words = |list: &[&str]| list.iter().map(|&name| name.to_owned()).collect();
    Some(Capability {
        add_capabilities: words(add),
        drop_capabilities: words(drop),
        ..Capability::default()
    })
}

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
