//! The gRPC code of each failure of the records.

use bulkhead_records::RecordsError;
use tonic::Code;

use crate::error::{Grpc, io_code};

impl Grpc for RecordsError {
    fn code(&self) -> Code {
        match self {
            Self::Exists { .. } => Code::AlreadyExists,
            Self::NotFound { .. } => Code::NotFound,
            Self::Ending { .. } => Code::Unavailable,
            Self::Transaction { .. } => self.io_error().map_or(Code::Internal, io_code),
            Self::Open { .. } | Self::Encode { .. } => Code::Internal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_the_nodes_shortage() {
        let full = redb::Error::Io(std::io::ErrorKind::StorageFull.into());
        let error = RecordsError::Transaction {
            action: "write a record",
            table: "sandboxes",
            source: Box::new(full),
        };
        assert_eq!(error.code(), Code::ResourceExhausted);
    }
}
