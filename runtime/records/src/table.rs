//! One table: its records in memory for reading, in redb for keeping.
//!
//! Durability: every commit is [`redb::Durability::Immediate`], the default. redb's cheaper level
//! keeps a commit in its own process until the next durable one, so `kill -9` would lose it, and
//! that is the very case the records are for. The price is one fsync per change, a few per pod.
//!
//! A change runs on the blocking pool and to its end even if the caller is dropped (a CRI client
//! that went away): disk and memory change together or not at all.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use redb::{ReadableTable as _, TableDefinition};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use crate::{Database, RecordsError};

type RedbTable<'a> = redb::Table<'a, &'static str, &'static [u8]>;

/// A text that more than one key begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ambiguous;

/// A kind of record.
pub trait Record: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {
    /// The table's name in the database; never changed once released.
    const TABLE: &'static str;

    /// The version of what is in a record, counted up when an older release would misread it. (One
    /// that only adds a field with a default need not.)
    const SCHEMA: u32 = 1;

    /// The key, unique in the table.
    fn key(&self) -> &str;
}

/// The records of one kind. Clones share the same table.
#[derive(Debug)]
pub struct Table<R> {
    inner: Arc<Inner<R>>,
}

impl<R> Clone for Table<R> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

#[derive(Debug)]
struct Inner<R> {
    database: Database,
    live: RwLock<HashMap<String, Arc<R>>>,
    // Held over read-change-write, so that two updates of one record do not lose one. Only ever
    // locked on the blocking pool. (redb has one writer at a time anyway.)
    writer: Mutex<()>,
}

impl<R: Record> Table<R> {
    /// Opens the table, making it if there is none, and reads all its records into memory. Blocks.
    ///
    /// # Errors
    /// The database cannot be read. A record in it that cannot is set aside, and the log says so.
    pub fn open(database: &Database) -> Result<Self, RecordsError> {
        // A write transaction, because opening makes the table when it is not there.
        let (live, unreadable) = database
            .write(|write| {
                let mut table = write.open_table(definition::<R>())?;
                let mut live = HashMap::new();
                let mut unreadable = Vec::new();
                for entry in table.iter()? {
                    let (key, value) = entry?;
                    match decode::<R>(value.value()) {
                        Ok(record) => {
                            live.insert(key.value().to_owned(), Arc::new(record));
                        }
                        Err(why) => unreadable.push(Unreadable {
                            key: key.value().to_owned(),
                            value: value.value().to_owned(),
                            why,
                        }),
                    }
                }
                let mut aside = write.open_table(SET_ASIDE)?;
                for Unreadable { key, value, .. } in &unreadable {
                    aside.insert((R::TABLE, key.as_str()), value.as_slice())?;
                    table.remove(key.as_str())?;
                }
                Ok((live, unreadable))
            })
            .map_err(failed::<R>("read all records"))?;
        for Unreadable { key, why, .. } in unreadable {
            tracing::error!(
                table = R::TABLE,
                key,
                "a record cannot be read and is set aside (kept in the database's table {}): {why}; \
                 what it stands for is not known to this daemon, and what it held on the host is \
                 removed",
                redb::TableHandle::name(&SET_ASIDE)
            );
        }
        let inner = Inner {
            database: database.clone(),
            live: RwLock::new(live),
            writer: Mutex::new(()),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The record with this key.
    pub fn get(&self, key: &str) -> Option<Arc<R>> {
        self.inner.read().get(key).cloned()
    }

    /// The record whose key is this, or the only one whose key begins with it (people type the
    /// beginning of an id), among those that are `shown`. An empty text finds nothing.
    pub fn find(
        &self,
        beginning: &str,
        shown: impl Fn(&R) -> bool,
    ) -> Result<Option<Arc<R>>, Ambiguous> {
        let live = self.inner.read();
        if beginning.is_empty() {
            return Ok(None);
        }
        if let Some(record) = live.get(beginning) {
            return Ok(Some(Arc::clone(record)).filter(|record| shown(record)));
        }
        let mut found = live
            .iter()
            .filter(|(key, record)| key.starts_with(beginning) && shown(record));
        match (found.next(), found.next()) {
            (Some(_), Some(_)) => Err(Ambiguous),
            (one, _) => Ok(one.map(|(_, record)| Arc::clone(record))),
        }
    }

    /// All records, in no order.
    pub fn list(&self) -> Vec<Arc<R>> {
        self.inner.read().values().cloned().collect()
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.inner.read().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a record; its key must be new.
    pub async fn insert(&self, record: R) -> Result<Arc<R>, RecordsError> {
        self.blocking(move |inner| {
            let _writer = inner.write_lock();
            let key = record.key().to_owned();
            if inner.read().contains_key(&key) {
                return Err(RecordsError::Exists {
                    table: R::TABLE,
                    key,
                });
            }
            inner.store(&key, record)
        })
        .await
    }

    /// Adds a record or replaces the one with its key.
    pub async fn put(&self, record: R) -> Result<Arc<R>, RecordsError> {
        self.blocking(move |inner| {
            let _writer = inner.write_lock();
            let key = record.key().to_owned();
            inner.store(&key, record)
        })
        .await
    }

    /// Changes a record by a function and gives back the new one. The function must not change
    /// the key; it runs with the table's writer lock held, so it only computes.
    pub async fn update<F>(&self, key: &str, change: F) -> Result<Arc<R>, RecordsError>
    where
        F: FnOnce(&mut R) + Send + 'static,
    {
        let key = key.to_owned();
        self.blocking(move |inner| {
            let _writer = inner.write_lock();
            let old = inner.read().get(&key).cloned();
            let Some(old) = old else {
                return Err(RecordsError::NotFound {
                    table: R::TABLE,
                    key,
                });
            };
            let mut new = R::clone(&old);
            change(&mut new);
            inner.store(&key, new)
        })
        .await
    }

    /// Takes a record away; `None` if there was none.
    pub async fn remove(&self, key: &str) -> Result<Option<Arc<R>>, RecordsError> {
        let key = key.to_owned();
        self.blocking(move |inner| {
            let _writer = inner.write_lock();
            if !inner.read().contains_key(&key) {
                return Ok(None);
            }
            inner.change("remove a record", |table| {
                table.remove(key.as_str())?;
                Ok(())
            })?;
            Ok(inner
                .live
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&key))
        })
        .await
    }

    /// Adds or replaces some records and takes others away, all in one transaction. A key to
    /// take away that is not there is fine.
    pub async fn batch(&self, puts: Vec<R>, removes: Vec<String>) -> Result<(), RecordsError> {
        self.blocking(move |inner| inner.batch(puts, &removes))
            .await
    }

    /// [`Self::batch`] for where there is no async yet: while the daemon opens its state.
    pub fn batch_blocking(&self, puts: Vec<R>, removes: Vec<String>) -> Result<(), RecordsError> {
        self.inner.batch(puts, &removes)
    }

    async fn blocking<T, F>(&self, work: F) -> Result<T, RecordsError>
    where
        T: Send + 'static,
        F: FnOnce(&Inner<R>) -> Result<T, RecordsError> + Send + 'static,
    {
        let inner = Arc::clone(&self.inner);
        match tokio::task::spawn_blocking(move || work(&inner)).await {
            Ok(result) => result,
            // A bug, and the caller's to report.
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_aborted) => Err(RecordsError::Ending { table: R::TABLE }),
        }
    }
}

impl<R: Record> Inner<R> {
    // A poisoned lock only says that a thread panicked between whole steps: the map is whole.
    fn read(&self) -> std::sync::RwLockReadGuard<'_, HashMap<String, Arc<R>>> {
        self.live.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_lock(&self) -> MutexGuard<'_, ()> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn batch(&self, puts: Vec<R>, removes: &[String]) -> Result<(), RecordsError> {
        if puts.is_empty() && removes.is_empty() {
            return Ok(());
        }
        let encoded = puts
            .iter()
            .map(encode)
            .collect::<Result<Vec<_>, RecordsError>>()?;
        let _writer = self.write_lock();
        self.change("change records", |table| {
            for key in removes {
                table.remove(key.as_str())?;
            }
            for (record, bytes) in puts.iter().zip(&encoded) {
                table.insert(record.key(), bytes.as_slice())?;
            }
            Ok(())
        })?;
        let mut live = self.live.write().unwrap_or_else(PoisonError::into_inner);
        for key in removes {
            live.remove(key);
        }
        for record in puts {
            live.insert(record.key().to_owned(), Arc::new(record));
        }
        Ok(())
    }

    /// One transaction on the table.
    fn change(
        &self,
        action: &'static str,
        work: impl FnOnce(&mut RedbTable<'_>) -> Result<(), redb::Error>,
    ) -> Result<(), RecordsError> {
        #[cfg(feature = "failpoints")]
        let failpoint = crate::failpoint::before(R::TABLE, action);
        self.database
            .write(|write| work(&mut write.open_table(definition::<R>())?))
            .map_err(failed::<R>(action))?;
        #[cfg(feature = "failpoints")]
        failpoint.after();
        Ok(())
    }

    fn store(&self, key: &str, record: R) -> Result<Arc<R>, RecordsError> {
        let bytes = encode(&record)?;
        self.change("write a record", |table| {
            table.insert(key, bytes.as_slice())?;
            Ok(())
        })?;
        let record = Arc::new(record);
        self.live
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key.to_owned(), Arc::clone(&record));
        Ok(record)
    }
}

/// A record as it is kept. Records of the first releases stand without this around them.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Versioned<R> {
    schema: u32,
    record: R,
}

/// A record that was set aside.
struct Unreadable {
    key: String,
    value: Vec<u8>,
    why: String,
}

/// Records that could not be read, by table and key, for who looks into them or goes back to the
/// release that wrote them.
const SET_ASIDE: TableDefinition<'static, (&'static str, &'static str), &'static [u8]> =
    TableDefinition::new("set_aside");

fn encode<R: Record>(record: &R) -> Result<Vec<u8>, RecordsError> {
    let versioned = Versioned {
        schema: R::SCHEMA,
        record,
    };
    serde_json::to_vec(&versioned).map_err(|source| RecordsError::Encode {
        table: R::TABLE,
        key: record.key().to_owned(),
        source,
    })
}

/// A record, or in words why it cannot be read.
fn decode<R: Record>(bytes: &[u8]) -> Result<R, String> {
    let versioned = serde_json::from_slice::<Versioned<Box<RawValue>>>(bytes);
    let record = match &versioned {
        Ok(versioned) if versioned.schema > R::SCHEMA => {
            return Err(format!(
                "a later release of Bulkhead wrote it (schema {}, this one reads up to {})",
                versioned.schema,
                R::SCHEMA
            ));
        }
        Ok(versioned) => versioned.record.get().as_bytes(),
        Err(_before_versions) => bytes,
    };
    serde_json::from_slice(record).map_err(|error| error.to_string())
}

fn definition<R: Record>() -> TableDefinition<'static, &'static str, &'static [u8]> {
    TableDefinition::new(R::TABLE)
}

fn failed<R: Record>(action: &'static str) -> impl FnOnce(redb::Error) -> RecordsError {
    move |source| RecordsError::Transaction {
        action,
        table: R::TABLE,
        source: Box::new(source),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Note {
        key: String,
        count: u32,
    }

    impl Record for Note {
        const TABLE: &'static str = "notes";
        fn key(&self) -> &str {
            &self.key
        }
    }

    fn note(key: &str) -> Note {
        Note {
            key: key.to_owned(),
            count: 0,
        }
    }

    fn notes(path: &Path) -> Table<Note> {
        Table::open(&Database::open(path).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn what_was_acknowledged_is_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        {
            let table = notes(&path);
            table.insert(note("a")).await.unwrap();
            table.insert(note("b")).await.unwrap();
            table.update("a", |n| n.count = 7).await.unwrap();
            table.remove("b").await.unwrap();
        }
        let table = notes(&path);
        assert_eq!(table.len(), 1);
        assert_eq!(table.get("a").unwrap().count, 7);
    }

    #[tokio::test]
    async fn no_update_is_lost_and_keys_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let table = notes(&dir.path().join("state.redb"));
        table.insert(note("a")).await.unwrap();
        let all = (0..50).map(|_| table.update("a", |n| n.count += 1));
        for done in futures::future::join_all(all).await {
            done.unwrap();
        }
        assert_eq!(table.get("a").unwrap().count, 50);
        assert!(matches!(
            table.insert(note("a")).await,
            Err(RecordsError::Exists { .. })
        ));
        assert!(matches!(
            table.update("z", |_| ()).await,
            Err(RecordsError::NotFound { .. })
        ));
        assert!(table.remove("z").await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_batch_changes_all_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        {
            let table = notes(&path);
            table.insert(note("a")).await.unwrap();
            let removes = vec!["a".to_owned(), "never".to_owned()];
            table
                .batch(vec![note("b"), note("c")], removes)
                .await
                .unwrap();
            assert_eq!(table.len(), 2);
            table
                .batch_blocking(Vec::new(), vec!["c".to_owned()])
                .unwrap();
        }
        let table = notes(&path);
        assert_eq!(table.len(), 1);
        assert!(table.get("b").is_some());
    }

    fn open(path: &Path) -> Table<Note> {
        Table::open(&Database::open(path).unwrap()).unwrap()
    }

    /// Puts what it likes into the database.
    fn raw(path: &Path, key: &str, value: &[u8]) {
        let database = Database::open(path).unwrap();
        let put = database.write(|write| {
            write.open_table(definition::<Note>())?.insert(key, value)?;
            Ok(())
        });
        put.unwrap();
    }

    fn set_aside(path: &Path, key: &str) -> Option<Vec<u8>> {
        let database = Database::open(path).unwrap();
        let read = database.write(|write| {
            let table = write.open_table(SET_ASIDE)?;
            let found = table.get((Note::TABLE, key))?;
            Ok(found.map(|found| found.value().to_owned()))
        });
        read.unwrap()
    }

    #[tokio::test]
    async fn a_record_that_cannot_be_read_is_set_aside_and_the_others_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        drop(open(&path).insert(note("good")).await.unwrap());
        let later = format!(
            r#"{{"schema":{},"record":{{"key":"later","count":1}}}}"#,
            Note::SCHEMA + 1
        );
        let bad: [(&str, &[u8]); 4] = [
            ("later", later.as_bytes()),
            (
                "variant",
                br#"{"schema":1,"record":{"key":"variant","count":"many"}}"#,
            ),
            ("cut", br#"{"schema":1,"rec"#),
            ("empty", b""),
        ];
        for (key, value) in bad {
            raw(&path, key, value);
        }
        let table = open(&path);
        assert_eq!(table.len(), 1);
        assert!(table.get("good").is_some());
        // Its key is free.
        table.insert(note("later")).await.unwrap();
        drop(table);
        for (key, value) in bad {
            assert_eq!(set_aside(&path, key).as_deref(), Some(value), "{key}");
        }
        assert_eq!(set_aside(&path, "good"), None);
    }

    #[test]
    fn records_from_before_there_were_versions_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        raw(&path, "old", br#"{"key":"old","count":4}"#);
        assert_eq!(open(&path).get("old").unwrap().count, 4);
    }

    /// A small file system of its own, unmounted at the end.
    struct Small(tempfile::TempDir);

    impl Small {
        fn mount() -> Option<Self> {
            use rustix::mount::{MountFlags, mount};
            let dir = tempfile::tempdir().unwrap();
            let size = c"size=4m";
            match mount("none", dir.path(), "tmpfs", MountFlags::empty(), size) {
                Ok(()) => Some(Self(dir)),
                Err(e) => {
                    println!("skipped: needs to mount a tmpfs: {e}");
                    None
                }
            }
        }
    }

    impl Drop for Small {
        fn drop(&mut self) {
            let flags = rustix::mount::UnmountFlags::DETACH;
            rustix::mount::unmount(self.0.path(), flags).unwrap();
        }
    }

    #[tokio::test]
    async fn a_full_disk_is_an_error_until_there_is_room_again() {
        let Some(small) = Small::mount() else { return };
        let path = small.0.path().join("state.redb");
        let table = notes(&path);
        table.insert(note("before")).await.unwrap();
        let filler = small.0.path().join("filler");
        let full = std::fs::write(&filler, vec![1; 4 << 20]).unwrap_err();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);

        let mut kept = Vec::new();
        let error = loop {
            let mut big = note(&format!("n{}", kept.len()));
            big.key.push_str(&"x".repeat(40_000));
            match table.insert(big.clone()).await {
                Ok(_) => kept.push(big.key),
                Err(error) => break error,
            }
        };
        let kind = error.io_error().map(std::io::Error::kind);
        assert_eq!(kind, Some(std::io::ErrorKind::StorageFull), "{error}");
        assert!(table.get(&format!("n{}", kept.len())).is_none());

        std::fs::remove_file(&filler).unwrap();
        table.insert(note("after")).await.unwrap();
        drop(table);
        let table = notes(&path);
        assert_eq!(table.len(), kept.len() + 2);
        assert!(table.get("before").is_some() && table.get("after").is_some());
    }
}
