//! The database file and the one way to change it.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use redb::{Database, WriteTransaction};

use super::RecordsError;

/// The open database. Changes go one after the other, as redb has them anyway.
#[derive(Debug)]
pub(super) struct Db {
    path: PathBuf,
    /// `None` after an I/O error (a full disk): redb then refuses everything until the file is
    /// opened anew, which the next change does. What was acknowledged is on disk.
    open: Mutex<Option<Database>>,
}

impl Db {
    /// Opens the file, making it if there is none. Blocks.
    pub(super) fn open(path: &Path) -> Result<Self, RecordsError> {
        let database = Database::create(path).map_err(|source| RecordsError::Open {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        Ok(Self {
            path: path.to_owned(),
            open: Mutex::new(Some(database)),
        })
    }

    /// Does `work` in one transaction, on disk when this returns. Blocks.
    pub(super) fn write<T>(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, redb::Error> {
        let mut open = self.lock();
        let database = match open.take() {
            Some(database) => database,
            None => Database::create(&self.path)?,
        };
        let result = transaction(&database, work);
        if !matches!(result, Err(redb::Error::Io(_) | redb::Error::PreviousIo)) {
            *open = Some(database);
        }
        result
    }

    // A panic in between leaves the database open or to be opened: either is whole.
    fn lock(&self) -> MutexGuard<'_, Option<Database>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn transaction<T>(
    database: &Database,
    work: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>,
) -> Result<T, redb::Error> {
    let write = database.begin_write()?;
    let done = work(&write)?;
    write.commit()?;
    Ok(done)
}
