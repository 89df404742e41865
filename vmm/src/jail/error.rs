//! What a step of making the jail fails with.

use std::io;

/// Why the jail could not be made.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// A system call failed.
    #[error("making the jail: {attempted}: {source}")]
    Io {
        /// What was attempted.
        attempted: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// New namespaces are refused.
    #[error(
        "making the jail: new namespaces: {0}; user namespaces must be allowed \
         (sysctl user.max_user_namespaces) and the caller not be in a chroot"
    )]
    Namespaces(#[source] io::Error),
}

fn failed(attempted: impl Into<String>) -> JailError {
    JailError::Io {
        attempted: attempted.into(),
        source: io::Error::last_os_error(),
    }
}

/// `result` of a system call, or its error.
pub(super) fn check(result: libc::c_int, attempted: &str) -> Result<libc::c_int, JailError> {
    if result < 0 {
        Err(failed(attempted))
    } else {
        Ok(result)
    }
}

/// Names what was attempted in an error of the system.
pub(super) trait Attempted<T> {
    fn or_failed(self, attempted: &str) -> Result<T, JailError>;
}

impl<T, E: Into<io::Error>> Attempted<T> for Result<T, E> {
    fn or_failed(self, attempted: &str) -> Result<T, JailError> {
        self.map_err(|error| JailError::Io {
            attempted: attempted.to_owned(),
            source: error.into(),
        })
    }
}
