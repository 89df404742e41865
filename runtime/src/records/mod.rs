//! What the daemon must not forget: pods, containers, images, as records in one redb database.
//!
//! Every change is one transaction, on disk before it is acknowledged; lists are served from
//! memory ([`Table`]) and never touch the disk. What a record means is its owner's business
//! (`sandbox`, `container`, `images`); here is how it is kept.

mod container;
mod db;
mod error;
mod sandbox;
mod table;
#[cfg(test)]
pub(crate) mod testing;
mod wire;

use std::{path::Path, sync::Arc};

pub use container::{ContainerMeta, ContainerRecord, ContainerState, ContainerStatus};
pub use error::RecordsError;
pub use sandbox::{
    InterfaceRecord, MachineKind, NetworkRecord, Phase, Resource, SandboxRecord, SandboxState,
    Shape, SizeLimits, VmExit, VmmProcess,
};
pub use table::{Ambiguous, Record, Table};
pub use wire::proto;

/// The open database and the tables of the daemon's spine. Other modules open their own tables
/// with [`Records::table`].
#[derive(Debug)]
pub struct Records {
    db: Arc<db::Db>,
    /// Pods by id.
    pub sandboxes: Table<SandboxRecord>,
    /// Containers by id.
    pub containers: Table<ContainerRecord>,
}

impl Records {
    /// Opens the database, making it if there is none, and reads all records into memory. Blocks.
    pub fn open(path: &Path) -> Result<Self, RecordsError> {
        let db = Arc::new(db::Db::open(path)?);
        Ok(Self {
            sandboxes: Table::open(Arc::clone(&db))?,
            containers: Table::open(Arc::clone(&db))?,
            db,
        })
    }

    /// A table of another module's records in the same database. Blocks: reads them all.
    pub fn table<R: Record>(&self) -> Result<Table<R>, RecordsError> {
        Table::open(Arc::clone(&self.db))
    }
}
