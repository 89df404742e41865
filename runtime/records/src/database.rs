//! The database file and the one way to change it.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use redb::WriteTransaction;

use crate::RecordsError;

/// The open database. Clones share it. Changes go one after the other, as redb has them anyway.
#[derive(Debug, Clone)]
pub struct Database {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    /// `None` after an I/O error (a full disk): redb then refuses everything until the file is
    /// opened anew, which the next change does. What was acknowledged is on disk.
    open: Mutex<Option<redb::Database>>,
}

impl Database {
    /// Opens the file, making it if there is none. Blocks.
    ///
    /// # Errors
    /// [`RecordsError::Open`]: the file cannot be made, is not a database, or is open elsewhere.
    pub fn open(path: &Path) -> Result<Self, RecordsError> {
        let database = redb::Database::create(path).map_err(|source| RecordsError::Open {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        let inner = Inner {
            path: path.to_owned(),
            open: Mutex::new(Some(database)),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Does `work` in one transaction, on disk when this returns. Blocks.
    pub(crate) fn write<T>(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, redb::Error> {
        let mut open = self.inner.lock();
        let database = match open.take() {
            Some(database) => database,
            None => redb::Database::create(&self.inner.path)?,
        };
        let result = transaction(&database, work);
        if !matches!(result, Err(redb::Error::Io(_) | redb::Error::PreviousIo)) {
            *open = Some(database);
        }
        result
    }
}

impl Inner {
    // A panic in between leaves the database open or to be opened: either is whole.
    fn lock(&self) -> MutexGuard<'_, Option<redb::Database>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn transaction<T>(
    database: &redb::Database,
    work: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>,
) -> Result<T, redb::Error> {
    let write = database.begin_write()?;
    let done = work(&write)?;
    write.commit()?;
    Ok(done)
}
