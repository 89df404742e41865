//! Why a container has no root: which step, on what, and the kernel's answer.

use std::path::PathBuf;

use rustix::io::Errno;

use crate::launcher::errno::errno_text;

/// Why a container has no root: which step, on what, and the kernel's answer.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// A step on a path of the image.
    #[error("{what} {}: {}", path.display(), errno_text(*error))]
    Path {
        /// The step.
        what: &'static str,
        /// The path in the container.
        path: PathBuf,
        /// The kernel's answer.
        error: Errno,
    },
    /// The image and the volume are of different kinds.
    #[error("mounting the volume on {}: the image has a {has} at {}, and the volume is a {is}", path.display(), path.display())]
    Kind {
        /// The path in the container.
        path: PathBuf,
        /// What is there.
        has: &'static str,
        /// What the volume is.
        is: &'static str,
    },
    /// A file is in the way to a mount point.
    #[error("mounting the volume on {}: the image has a file at {}", path.display(), at.display())]
    InTheWay {
        /// The path in the container.
        path: PathBuf,
        /// Where the file is.
        at: PathBuf,
    },
    /// A mount in procfs, which would let a container lie about the kernel to itself and to tools.
    #[error("mounting on {}: it is inside /proc, where only files such as /proc/cpuinfo may be mounted", .0.display())]
    InProc(PathBuf),
    /// What procfs or sysfs, or a volume in its place, is to be mounted on is a link.
    #[error("mounting {kind} on {}: the image has a symbolic link there or above it; it must be a plain directory", path.display())]
    Linked {
        /// The file system.
        kind: &'static str,
        /// The path in the container.
        path: PathBuf,
    },
    /// The source of a mount.
    #[error("mounting on {}: opening its source {}: {}", path.display(), source_path.display(), errno_text(*error))]
    Source {
        /// The path in the container.
        path: PathBuf,
        /// The source.
        source_path: PathBuf,
        /// The kernel's answer.
        error: Errno,
    },
    /// The kernel refused a file system.
    #[error("mounting {kind} on {}: {step}: {}{log}", path.display(), errno_text(*error))]
    FileSystem {
        /// Its type.
        kind: String,
        /// The path in the container.
        path: PathBuf,
        /// Which step.
        step: String,
        /// The kernel's answer.
        error: Errno,
        /// The kernel's log of the configuration, if it has one.
        log: String,
    },
    /// A step that concerns no path of the image.
    #[error("{what}: {}", errno_text(*error))]
    Step {
        /// The step.
        what: &'static str,
        /// The kernel's answer.
        error: Errno,
    },
}
