//! What the daemon must not forget: pods and containers, as records in its database.
//!
//! How records are kept is the `bulkhead-records` crate's business, and what one means its owner's
//! (`sandbox`, `container`); here is what is in them. Images have their own tables in the same
//! database.

mod container;
mod error;
mod sandbox;
#[cfg(test)]
pub(crate) mod testing;
mod wire;

use std::{path::Path, sync::Arc};

use bulkhead_records::{Database, RecordsError, Table};

pub use container::{ContainerMeta, ContainerRecord, ContainerState, ContainerStatus, LayerPlace};
pub use sandbox::{
    InterfaceRecord, KVM_FULL, MachineKind, NetworkRecord, Phase, Placement, Resource,
    SandboxRecord, SandboxState, Shape, SizeLimits, VmExit, VmmProcess,
};
pub use wire::proto;

/// The open database and the tables of the daemon's spine. Other modules open their own tables
/// in [`Records::database`].
#[derive(Debug)]
pub struct Records {
    database: Database,
    /// Pods by id.
    pub sandboxes: Table<SandboxRecord>,
    /// Containers by id.
    pub containers: Table<ContainerRecord>,
}

impl Records {
    /// Opens the database, making it if there is none, and reads all records into memory. Blocks.
    ///
    /// # Errors
    /// The database cannot be opened or read.
    pub fn open(path: &Path) -> Result<Self, RecordsError> {
        let database = Database::open(path)?;
        Ok(Self {
            sandboxes: Table::open(&database)?,
            containers: Table::open(&database)?,
            database,
        })
    }

    /// The containers of a pod, in no order.
    pub fn containers_of(&self, sandbox_id: &str) -> Vec<Arc<ContainerRecord>> {
        let mut records = self.containers.list();
        records.retain(|record| record.meta.sandbox_id == sandbox_id);
        records
    }

    /// The database, for another module's table.
    #[must_use]
    pub fn database(&self) -> &Database {
        &self.database
    }
}
