//! The pods' control groups on the host (version 2): where CRI's `cgroup_parent` lies, the leaf a
//! pod's VMM runs in, and what memory its ancestors leave it.

mod parent;

pub use parent::{ParentError, parent_path};
