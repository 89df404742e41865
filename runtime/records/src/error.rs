//! What can go wrong with the records.

use std::path::PathBuf;

/// A failure to read or write the daemon's records.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// The database file does not open.
    #[error(
        "cannot open the records in {path}: {source}; if the file is damaged, stop the daemon, \
         move it away and start again (pods it knew are then swept)"
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<redb::DatabaseError>,
    },
    /// A transaction failed.
    #[error("cannot {action} in the records' table {table}")]
    Transaction {
        /// What was attempted.
        action: &'static str,
        /// The table.
        table: &'static str,
        /// Why.
        source: Box<redb::Error>,
    },
    /// A record cannot be written as JSON: a bug.
    #[error("the record {key} for table {table} cannot be encoded")]
    Encode {
        /// The table.
        table: &'static str,
        /// The record's key.
        key: String,
        /// Why.
        source: serde_json::Error,
    },
    /// Insert of a key that is there.
    #[error("a record {key} is in table {table} already")]
    Exists {
        /// The table.
        table: &'static str,
        /// The record's key.
        key: String,
    },
    /// Update of a key that is not there.
    #[error("no record {key} is in table {table}")]
    NotFound {
        /// The table.
        table: &'static str,
        /// The record's key.
        key: String,
    },
    /// The writer's task was torn down: the daemon is ending.
    #[error("the write to table {table} was given up, because the daemon is ending")]
    Ending {
        /// The table.
        table: &'static str,
    },
}

impl RecordsError {
    /// The operating system's error behind this one, if a transaction failed with one: a full
    /// disk, for example.
    #[must_use]
    pub fn io_error(&self) -> Option<&std::io::Error> {
        match self {
            Self::Transaction { source, .. } => match source.as_ref() {
                redb::Error::Io(io) => Some(io),
                _ => None,
            },
            _ => None,
        }
    }
}
