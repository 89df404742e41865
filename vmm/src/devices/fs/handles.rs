//! The files the guest has open (handles), each behind a number that is never given twice. The table
//! is bounded.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use rustix::io::Errno;

use super::nodes::Origin;

/// An open file or directory.
#[derive(Debug)]
pub struct Handle {
    /// The file.
    pub fd: OwnedFd,
    /// Opened for writing.
    pub writable: bool,
    /// What is behind it.
    pub origin: Origin,
    /// A directory's: one reader at a time, as they share a position.
    pub position: Option<Mutex<()>>,
    /// For the inode numbers of a directory's entries.
    pub device: u16,
}

/// All handles.
#[derive(Debug)]
pub struct Handles {
    open: HashMap<u64, Arc<Handle>>,
    next: u64,
    max: usize,
}

impl Handles {
    /// None yet.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Handles {
            open: HashMap::new(),
            next: 1,
            max,
        }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.open.len()
    }

    /// Whether there is room for one more.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.open.len() >= self.max
    }

    /// The open file.
    ///
    /// # Errors
    /// BADF when there is no such handle.
    pub fn get(&self, id: u64) -> Result<Arc<Handle>, Errno> {
        self.open.get(&id).map(Arc::clone).ok_or(Errno::BADF)
    }

    /// Keeps an open file, and gives its number.
    ///
    /// # Errors
    /// NFILE when there are too many.
    pub fn add(&mut self, handle: Handle) -> Result<u64, Errno> {
        if self.is_full() {
            return Err(Errno::NFILE);
        }
        let id = self.next;
        self.next += 1;
        self.open.insert(id, Arc::new(handle));
        Ok(id)
    }

    /// The guest has closed it; the file is closed when the last request on it is done.
    ///
    /// # Errors
    /// BADF when there is no such handle.
    pub fn remove(&mut self, id: u64) -> Result<Arc<Handle>, Errno> {
        self.open.remove(&id).ok_or(Errno::BADF)
    }

    /// Closes all.
    pub fn clear(&mut self) -> Vec<Arc<Handle>> {
        self.open.drain().map(|(_, handle)| handle).collect()
    }
}
