//! How an error becomes a gRPC status: the one place. Each module has its own error enum and says
//! by [`Grpc`] which code each variant is; the text is the error's own, with its causes.
//!
//! Nothing here (or anywhere) decides by the text of an error.

use std::error::Error;

use tonic::{Code, Status};

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

/// The text of an error and its causes, `outer: inner: innermost`. A cause whose text stands in
/// the outer one already is not repeated.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
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

    #[derive(Debug, thiserror::Error)]
    #[error("cannot start")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn causes_are_part_of_the_text_once() {
        let outer = Outer(std::io::Error::other("no disk"));
        assert_eq!(chain(&outer), "cannot start: no disk");
    }

    #[test]
    fn a_full_disk_is_the_nodes_shortage() {
        let full = std::io::Error::from_raw_os_error(28);
        assert_eq!(io_code(&full), Code::ResourceExhausted);
    }
}
