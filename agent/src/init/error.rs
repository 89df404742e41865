//! Why the guest could not be brought up.

use std::path::PathBuf;

use rustix::io::Errno;

/// Why the guest could not be brought up.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// A mount failed.
    #[error("mounting {what} at {} (is it in the guest kernel's configuration?)", target.display())]
    Mount {
        /// The file system.
        what: &'static str,
        /// Where.
        target: PathBuf,
        /// The kernel's answer.
        #[source]
        error: Errno,
    },
    /// A directory or file of the guest's own tree failed.
    #[error("making {}", path.display())]
    Make {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        error: std::io::Error,
    },
    /// The root could not be replaced.
    #[error("moving the guest's root file system")]
    Root(#[source] Errno),
    /// The loopback device.
    #[error("bringing up the loopback device")]
    Loopback(#[source] std::io::Error),
    /// cgroup controllers could not be delegated.
    #[error("enabling cgroup controllers at {}", path.display())]
    Cgroup {
        /// Where.
        path: PathBuf,
        /// The cause.
        #[source]
        error: std::io::Error,
    },
}
