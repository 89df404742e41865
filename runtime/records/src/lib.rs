//! Records that must survive the daemon, in one redb database.
//!
//! Every change is one transaction, on disk before it is acknowledged; lists are served from
//! memory ([`Table`]) and never touch the disk. What a record means is its owner's business, and
//! this crate knows none of them: pods and containers are in the daemon's `records`, images in
//! the images crate.
#![forbid(unsafe_code)]

mod database;
mod error;
#[cfg(feature = "failpoints")]
mod failpoint;
mod table;

pub use database::Database;
pub use error::RecordsError;
pub use table::{Ambiguous, Record, Table};
