//! Why the guest could not be brought up.

use std::path::PathBuf;

use rustix::io::Errno;

/// Why the guest could not be brought up.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// A mount failed.
    #[error("mounting {what} at {} failed: {error}; is it in the guest kernel's configuration?", target.display())]
    Mount {
        /// The file system.
        what: &'static str,
        /// Where.
        target: PathBuf,
        /// The kernel's answer.
        error: Errno,
    },
    /// A directory or file of the guest's own tree failed.
    #[error("making {} failed: {error}", path.display())]
    Make {
        /// Which.
        path: PathBuf,
        /// The cause.
        error: std::io::Error,
    },
    /// The root could not be replaced.
    #[error("moving the guest's root file system failed: {0}")]
    Root(Errno),
    /// The loopback device.
    #[error("setting the loopback device up failed: {0}")]
    Loopback(std::io::Error),
    /// cgroup controllers could not be delegated.
    #[error("enabling cgroup controllers at {} failed: {error}", path.display())]
    Cgroup {
        /// Where.
        path: PathBuf,
        /// The cause.
        error: std::io::Error,
    },
}
