//! Parts of a container's security context that several themes ask for.

use bulkhead_proto::cri::{
    Capability, ContainerConfig, LinuxContainerSecurityContext, NamespaceMode, NamespaceOption,
    SecurityProfile, security_profile::ProfileType,
};

/// The container with this security context and no other.
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

/// A profile of seccomp or AppArmor that has no name.
pub(super) fn profile(kind: ProfileType) -> Option<SecurityProfile> {
    Some(SecurityProfile {
        profile_type: kind.into(),
        ..SecurityProfile::default()
    })
}

/// Capabilities to add and to drop.
pub(super) fn capabilities(add: &[&str], drop: &[&str]) -> Option<Capability> {
    let words = |list: &[&str]| list.iter().map(|&name| name.to_owned()).collect();
    Some(Capability {
        add_capabilities: words(add),
        drop_capabilities: words(drop),
        ..Capability::default()
    })
}

/// The PID namespace to be in; `target` is a container's id for `NamespaceMode::Target`.
pub(super) fn pids(mode: NamespaceMode, target: &str) -> Option<NamespaceOption> {
    Some(NamespaceOption {
        pid: mode.into(),
        target_id: target.to_owned(),
        ..NamespaceOption::default()
    })
}
