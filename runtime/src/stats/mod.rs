//! What pods use: PodSandboxStats, and the named metrics of ListPodSandboxMetrics. A pod has two
//! sides, kept apart: the host's (the pod's cgroup: the VM with all it costs) and the
//! guest's (its containers, interfaces and processes, as the agent reads them). docs/stats.md says
//! what each figure is.
//!
//! `collect` reads both sides of one pod or all, `pods` makes CRI's statistics of them, `metrics`
//! the named values, `families` is the table of the names. A container's own statistics are in
//! `container`.

mod collect;
mod families;
mod metrics;
mod pods;

pub use metrics::{descriptors, list as list_metrics};
pub use pods::{list as list_pods, one as pod};
