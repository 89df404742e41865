//! Where a pod's machine is charged: the cgroup CRI names, what it allows, and the leaf below it or beside
//! it. The cgroups themselves are `cgroup`'s.

use std::path::{Path, PathBuf};

use bulkhead_proto::cri::PodSandboxConfig;

use super::{SandboxError, sizing};
use crate::{
    app::App,
    cgroup::{self, Leaf, PodLimits},
    records::{SandboxRecord, Shape},
    task::blocking,
};

/// That there are pods whose VM is charged beside them; said once.
static SAID: std::sync::Once = std::sync::Once::new();

/// The directory of the cgroup that CRI names for the pod, or of the default.
pub(super) fn cgroup_parent(app: &App, config: &PodSandboxConfig) -> Result<PathBuf, SandboxError> {
    let given = config
        .linux
        .as_ref()
        .map_or("", |l| l.cgroup_parent.as_str());
    let parent = match given {
        "" => app.config.cgroup.default_parent.as_str(),
        given => given,
    };
    cgroup::parent_path(app.config.cgroup.driver, parent)
        .map(|below| app.config.cgroup.root.join(below))
        .map_err(|source| SandboxError::CgroupParent {
            parent: parent.to_owned(),
            source,
        })
}

/// What the pod's cgroup allows. One that CRI does not name is everybody's, and says nothing about
/// this pod: it is one of those above the pod's, which bound it all the same.
pub(super) async fn pod_limits(
    app: &App,
    config: &PodSandboxConfig,
    parent: &Path,
) -> Result<PodLimits, SandboxError> {
    let (root, parent) = (app.config.cgroup.root.clone(), parent.to_owned());
    let named = config
        .linux
        .as_ref()
        .is_some_and(|l| !l.cgroup_parent.is_empty());
    blocking(move || {
        let limits = match named {
            true => cgroup::pod_limits(&root, &parent),
            false => cgroup::limits_below(&root, &parent),
        };
        limits.map_err(|source| SandboxError::Os {
            action: "read the limits of the pod's cgroup".to_owned(),
            source,
        })
    })
    .await
}

/// Where the VM is charged: in the pod's cgroup, or beside it.
pub(super) fn leaf(parent: &Path, id: &str, shape: &Shape) -> Leaf {
    let beside = shape.limits.is_some_and(|limits| limits.beside);
    let above = parent.parent().filter(|_| beside);
    Leaf::of(above.unwrap_or(parent), id)
}

/// The bound of a VM that is charged beside its pod's cgroup.
#[derive(Debug)]
pub(super) struct Bound {
    leaf: Leaf,
    pod: PathBuf,
    mib: u64,
}

impl Bound {
    /// For a VM with so much memory for its guest; `None` for one that its pod's cgroup bounds.
    pub(super) fn of(
        app: &App,
        record: &SandboxRecord,
        guest_mib: u64,
    ) -> Result<Option<Self>, SandboxError> {
        let limits = record.shape.limits;
        let leaf = record.cgroup().map(Leaf::at);
        let Some(leaf) = leaf.filter(|_| limits.is_some_and(|limits| limits.beside)) else {
            return Ok(None);
        };
        let mib = sizing::total_mib(&app.config.vmm, guest_mib);
        SAID.call_once(|| {
            tracing::info!(
                pod = %record.id, cgroup = %leaf.path().display(), allowed_mib = mib,
                "the pod's memory limit is for its containers alone: its class has no \
                 overhead.podFixed.memory, or too little for a VM. Such VMs are charged to a cgroup \
                 beside the pod's, here and from now on"
            );
        });
        Ok(Some(Self {
            leaf,
            pod: cgroup_parent(app, &record.config)?,
            mib,
        }))
    }

    /// Sets it. Blocks.
    pub(super) fn set(&self) -> Result<(), SandboxError> {
        Ok(self.leaf.bound(&self.pod, self.mib << 20)?)
    }
}
