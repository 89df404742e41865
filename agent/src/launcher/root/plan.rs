//! What a container's root is made from: read by each step of it.

use std::path::Path;

use oci_spec::runtime::Spec;

/// What the root is made from.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// Mounts, devices, what is hidden.
    pub spec: &'a Spec,
    /// Where the layers are stacked.
    pub rootfs: &'a Path,
    /// Only the agent creates names below this.
    pub base: &'a Path,
    /// The container is in a user namespace of its own, which may not make device nodes.
    pub own_users: bool,
    /// The working directory, made if it is missing.
    pub directory: &'a Path,
}
