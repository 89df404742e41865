//! How an error becomes a gRPC status: the one place. Each module has its own error enum and says
//! by [`Grpc`] which code each variant is; the text is the error's own, with its causes.
//!
//! Nothing here (or anywhere) decides by the text of an error.

use std::error::Error;

use tonic::{Code, Status};

pub use bulkhead_common::chain;

/// An error with a gRPC code. Implemented once per module's error enum.
pub trait Grpc: Error {
    /// The code a CRI client gets. A wrapped error is asked for its own (`source.code()`).
    fn code(&self) -> Code;

    /// The status for the wire: the code, and the text with all causes that it does not hold yet.
    fn status(&self) -> Status
    where
        Self: Sized,
    {
        Status::new(self.code(), chain(self))
    }
}

/// The code for an operating-system error that has no more special meaning where it arose: a full
/// disk and exhausted tables are the node's shortage, everything else is internal.
pub fn io_code(error: &std::io::Error) -> Code {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::OutOfMemory => {
            Code::ResourceExhausted
        }
        ErrorKind::TimedOut => Code::DeadlineExceeded,
        _ => Code::Internal,
    }
}

/// An RPC that is not there yet, or a part of one.
#[derive(Debug, thiserror::Error)]
#[error("{what} is not implemented in this release of Bulkhead")]
pub struct Unimplemented {
    /// The RPC or feature, as CRI names it.
    pub what: &'static str,
}

impl Grpc for Unimplemented {
    fn code(&self) -> Code {
        Code::Unimplemented
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_the_nodes_shortage() {
        let full = std::io::Error::from_raw_os_error(28);
        assert_eq!(io_code(&full), Code::ResourceExhausted);
    }
}
