//! For tests (feature `failpoints`, never in a release): the process dies at a chosen write, as by
//! `kill -9`.
//!
//! - `BULKHEAD_DIE_AT=N` ends it right after its Nth write is on disk, `BULKHEAD_DIE_BEFORE=N` right
//!   before. Counted from 1, over all tables.
//! - `BULKHEAD_WRITES=FILE` appends a line `N TABLE: ACTION` per write that is about to be made.

use std::{
    fs::OpenOptions,
    io::Write as _,
    sync::atomic::{AtomicU64, Ordering},
};

static WRITES: AtomicU64 = AtomicU64::new(0);

/// A write that is under way.
#[must_use]
pub(crate) struct Failpoint(u64);

/// Counts a write; does not return if the process is to die before it.
pub(crate) fn before(table: &str, action: &str) -> Failpoint {
    let number = WRITES.fetch_add(1, Ordering::Relaxed) + 1;
    if let Some(path) = std::env::var_os("BULKHEAD_WRITES") {
        let file = OpenOptions::new().append(true).create(true).open(path);
        let written = file.and_then(|mut file| writeln!(file, "{number} {table}: {action}"));
        if let Err(error) = written {
            tracing::error!("BULKHEAD_WRITES: {error}");
        }
    }
    die_if("BULKHEAD_DIE_BEFORE", number);
    Failpoint(number)
}

impl Failpoint {
    /// The write is on disk; does not return if the process is to die now.
    pub(crate) fn after(self) {
        die_if("BULKHEAD_DIE_AT", self.0);
    }
}

fn die_if(variable: &str, number: u64) {
    if std::env::var(variable).is_ok_and(|chosen| chosen == number.to_string()) {
        std::process::abort();
    }
}
