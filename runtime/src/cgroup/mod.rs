//! The pods' control groups on the host (version 2): where CRI's `cgroup_parent` lies, the leaf a
//! pod's VMM runs in, and what memory its ancestors leave it.
//!
//! With the systemd driver the leaf is a plain directory below the slice systemd made, not a
//! scope of systemd's: nothing here speaks D-Bus.

mod error;
mod leaf;
mod limit;
mod parent;
mod usage;

pub use error::CgroupError;
pub use leaf::{Leaf, check_v2, find, kill, remove};
pub use limit::{PodLimits, limits_below, oom_kills, pids_limit, pod_limits};
pub use parent::{CgroupDriver, ParentError, parent_path};
pub use usage::{Memory, Usage, usage};

/// Whether a cgroup is no longer there: its files answer ENODEV to who has opened them before it was
/// removed.
fn is_gone(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::NotFound
        || rustix::io::Errno::from_io_error(error) == Some(rustix::io::Errno::NODEV)
}

#[cfg(test)]
mod tests {
    use std::io;

    use rustix::io::Errno;

    use super::*;

    #[test]
    fn a_cgroup_removed_before_or_after_its_file_was_opened_is_gone() {
        for (errno, gone) in [
            (Errno::NOENT, true),
            (Errno::NODEV, true),
            (Errno::ACCESS, false),
        ] {
            assert_eq!(is_gone(&io::Error::from(errno)), gone, "{errno}");
        }
    }
}
