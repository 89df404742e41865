//! What the process gives up before it runs a guest.
//!
//! The outer process, with the daemon's privileges, joins the cgroups, closes what was not meant
//! for the VMM and makes a child in namespaces of its own (`namespaces`); the child takes the
//! pod's directory as its whole file system (`root`) and drops every privilege (`privileges`).
//! With a file server (virtio-fs) the directory it serves stays too, and its threads keep the
//! capabilities over files that serving them with their owners takes: over ids as they are on the
//! host, and with no file in reach but those of the share. Nothing here knows what the VMM does
//! afterwards.

mod descriptors;
mod error;
mod namespaces;
mod privileges;
mod root;

use std::fs::File;
use std::io::Write;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use bulkhead_contract::vmm::Jail;
use rustix::process::setsid;

use self::error::Attempted;

pub use self::error::JailError;
pub use descriptors::{close_all_but, null_stdio};
pub use namespaces::{Child, fork};
pub use privileges::{drop_capabilities, keep_capabilities, raise_file_capabilities};
pub use root::descriptors;

/// Puts this process into the cgroups behind `fds` and closes them.
///
/// # Errors
/// When a cgroup takes no process.
pub fn join_cgroups(fds: &[RawFd]) -> Result<(), JailError> {
    for fd in fds {
        // SAFETY: the configuration names every descriptor once, for this purpose.
        let mut procs = unsafe { File::from_raw_fd(*fd) };
        // Zero stands for the writing process (cgroup v2, "cgroup.procs").
        procs.write_all(b"0").map_err(|source| JailError::Io {
            attempted: format!("joining the cgroup of descriptor {fd}"),
            source,
        })?;
    }
    Ok(())
}

/// In the child: the pod's directory becomes everything, and every privilege goes, but for what a
/// file server of the directory `share` needs. Gives /proc/self/fd, which that needs too.
///
/// # Errors
/// When a step fails; the process must then end.
pub fn enter(jail: &Jail, share: Option<&Path>) -> Result<Option<OwnedFd>, JailError> {
    match share {
        // Zero in here, the VMM's own outside.
        None => privileges::become_user(0, 0)?,
        Some(_) => {
            privileges::keep_capabilities()?;
            privileges::become_user(jail.uid, jail.gid)?;
        }
    }
    // Fails only for a process group leader, which a child is not.
    setsid().or_failed("a session of its own")?;
    let descriptors = share.map(|_| root::own_descriptors()).transpose()?;
    root::enter(share)?;
    privileges::drop_all(share.is_some())?;
    Ok(descriptors)
}
