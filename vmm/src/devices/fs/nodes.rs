//! What the guest knows of the share: nodes (a file it has looked up) and handles (one it has
//! open), each behind a number that is never given twice. Both tables are bounded.
//!
//! A node is an `O_PATH` descriptor: it names the file for good, whatever becomes of its name, and
//! grants nothing by itself. No path is ever kept.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use rustix::fs::{FileType, StatVfsMountFlags, Statx};
use rustix::io::Errno;

use super::abi::ROOT;

/// The most file systems that are distinguished in the guest's inode numbers.
const MAX_DEVICES: usize = 4096;

/// What is behind the files of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Stored bytes: a file's size is how many there are.
    Stored,
    /// The kernel's text, made when it is read: a size of 0 or of a page says nothing.
    Kernel,
    /// The same, on a procfs, where opening a file can mean much more than reading it.
    Process,
    /// What is read may be gone then, and more of it is waited for (tracefs).
    Stream,
}

impl Origin {
    /// Whether a file has an end that reading finds, whatever its size says.
    #[must_use]
    pub fn is_text(self) -> bool {
        matches!(self, Origin::Kernel | Origin::Process)
    }
}

/// What makes a node the same: the file. Locks, FIFOs, sockets and mappings are of a file, by
/// whatever mount it was reached. A directory is another one by each mount: others may be mounted
/// on what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    device: u64,
    inode: u64,
    /// A directory's.
    mount: Option<u64>,
}

impl Key {
    fn of(stat: &Statx, kind: FileType) -> Self {
        Key {
            device: device_of(stat),
            inode: stat.stx_ino,
            mount: (kind == FileType::Directory).then_some(stat.stx_mnt_id),
        }
    }
}

/// A file the guest has looked up.
#[derive(Debug)]
pub struct Node {
    /// `O_PATH`.
    pub fd: OwnedFd,
    /// Its type when it was looked up, which a file never changes.
    pub kind: FileType,
    /// The number of its file system, for inode numbers.
    pub device: u16,
    /// What is behind the files of its file system.
    pub origin: Origin,
    /// The device number of its file system on the host.
    host_device: u64,
    /// The mount it was reached by.
    mount: u64,
}

/// A file as the guest was told of it.
#[derive(Debug)]
pub struct Added {
    /// Its number.
    pub id: u64,
    /// The file.
    pub node: Arc<Node>,
    /// What the guest's requests on the file go through until now, where that is another mount's.
    pub leading: Option<Arc<Node>>,
}

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

#[derive(Debug)]
struct Entry {
    key: Key,
    /// What requests on the file go through.
    node: Arc<Node>,
    /// The same file by other mounts.
    others: Vec<Arc<Node>>,
    /// How often the guest has looked it up (FUSE's `nlookup`).
    count: u64,
}

/// All nodes.
#[derive(Debug)]
pub struct Nodes {
    by_id: HashMap<u64, Entry>,
    by_key: HashMap<Key, u64>,
    devices: HashMap<u64, u16>,
    /// How many there are in `others`.
    others: usize,
    next: u64,
    max: usize,
}

/// The device number of a file as one number.
fn device_of(stat: &Statx) -> u64 {
    u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor)
}

/// The inode number the guest sees. Several file systems of the host are one in the guest, where
/// two files with one number pass for hard links of each other; so the file system's number goes
/// into bits that inode numbers seldom reach.
#[must_use]
pub fn ino(device: u16, inode: u64) -> u64 {
    inode ^ (u64::from(device) << 44)
}

impl Node {
    /// The inode number the guest sees of it.
    #[must_use]
    pub fn ino(&self, stat: &Statx) -> u64 {
        ino(self.device, stat.stx_ino)
    }

    /// Whether `stat` is of a file on the same mount.
    #[must_use]
    pub fn same_mount(&self, stat: &Statx) -> bool {
        self.mount == stat.stx_mnt_id && self.host_device == device_of(stat)
    }

    /// Whether its mount and its file system are written to.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        let of = rustix::fs::fstatvfs(&self.fd);
        of.is_ok_and(|of| !of.f_flag.contains(StatVfsMountFlags::RDONLY))
    }
}

impl Nodes {
    /// Holds the root alone.
    #[must_use]
    pub fn new(root: OwnedFd, stat: &Statx, max: usize) -> Self {
        let mut nodes = Nodes {
            by_id: HashMap::new(),
            by_key: HashMap::new(),
            devices: HashMap::new(),
            others: 0,
            next: ROOT,
            max: max.max(1),
        };
        // The table has room for one.
        let _ = nodes.add(root, stat, FileType::Directory, Origin::Stored);
        nodes
    }

    /// How many there are, by each mount.
    #[must_use]
    pub fn count(&self) -> usize {
        self.by_id.len() + self.others
    }

    /// The node, when the guest has looked it up.
    ///
    /// # Errors
    /// STALE when not, or no longer.
    pub fn get(&self, id: u64) -> Result<Arc<Node>, Errno> {
        let entry = self.by_id.get(&id).ok_or(Errno::STALE)?;
        Ok(Arc::clone(&entry.node))
    }

    /// The same by the mount that `dir` was reached by, where the guest has looked it up by that.
    ///
    /// # Errors
    /// STALE when it is not known at all.
    pub fn get_beside(&self, id: u64, dir: &Node) -> Result<Arc<Node>, Errno> {
        let entry = self.by_id.get(&id).ok_or(Errno::STALE)?;
        let beside = entry.others.iter().find(|node| node.mount == dir.mount);
        let beside = beside.filter(|_| entry.node.mount != dir.mount);
        Ok(Arc::clone(beside.unwrap_or(&entry.node)))
    }

    /// Tells the guest of a file: its number, new or not.
    ///
    /// # Errors
    /// NFILE when the table is full.
    pub fn add(
        &mut self,
        fd: OwnedFd,
        stat: &Statx,
        kind: FileType,
        origin: Origin,
    ) -> Result<Added, Errno> {
        let key = Key::of(stat, kind);
        let full = self.count() >= self.max;
        let device = self.device_number(key.device);
        let made = || {
            Arc::new(Node {
                fd,
                kind,
                device,
                origin,
                host_device: key.device,
                mount: stat.stx_mnt_id,
            })
        };
        if let Some(id) = self.by_key.get(&key)
            && let Some(entry) = self.by_id.get_mut(id)
        {
            let mut by_any = std::iter::once(&entry.node).chain(&entry.others);
            let known = by_any.find(|node| node.mount == stat.stx_mnt_id);
            let added = match known.cloned() {
                Some(node) => Added {
                    id: *id,
                    node,
                    leading: None,
                },
                None if full => return Err(Errno::NFILE),
                None => {
                    let node = made();
                    entry.others.push(Arc::clone(&node));
                    self.others += 1;
                    Added {
                        id: *id,
                        node,
                        leading: Some(Arc::clone(&entry.node)),
                    }
                }
            };
            entry.count = entry.count.saturating_add(1);
            return Ok(added);
        }
        if full {
            return Err(Errno::NFILE);
        }
        let node = made();
        let id = self.next;
        self.next += 1;
        let entry = Entry {
            key,
            node: Arc::clone(&node),
            others: Vec::new(),
            count: 1,
        };
        self.by_id.insert(id, entry);
        self.by_key.insert(key, id);
        Ok(Added {
            id,
            node,
            leading: None,
        })
    }

    /// From now on requests on the file go through the mount that `node` was reached by.
    pub fn lead(&mut self, id: u64, node: &Arc<Node>) {
        let Some(entry) = self.by_id.get_mut(&id) else {
            // Forgotten meanwhile.
            return;
        };
        if let Some(other) = entry
            .others
            .iter_mut()
            .find(|other| Arc::ptr_eq(other, node))
        {
            std::mem::swap(other, &mut entry.node);
        }
    }

    fn device_number(&mut self, device: u64) -> u16 {
        let next = u16::try_from(self.devices.len()).unwrap_or(u16::MAX);
        match self.devices.get(&device) {
            Some(number) => *number,
            None if self.devices.len() >= MAX_DEVICES => u16::MAX,
            None => {
                self.devices.insert(device, next);
                next
            }
        }
    }

    /// The guest has dropped `count` of its references. What is no longer known to it is given
    /// back, to be closed outside of the lock.
    pub fn forget(&mut self, id: u64, count: u64) -> Vec<Arc<Node>> {
        if id == ROOT {
            return Vec::new();
        }
        let Some(entry) = self.by_id.get_mut(&id) else {
            return Vec::new();
        };
        entry.count = entry.count.saturating_sub(count);
        if entry.count > 0 {
            return Vec::new();
        }
        let Some(mut entry) = self.by_id.remove(&id) else {
            return Vec::new();
        };
        self.by_key.remove(&entry.key);
        self.others -= entry.others.len();
        entry.others.push(entry.node);
        entry.others
    }

    /// Drops all but the root. Numbers continue where they were.
    pub fn clear(&mut self) -> Vec<Arc<Node>> {
        let gone: Vec<u64> = self.by_id.keys().copied().filter(|i| *i != ROOT).collect();
        gone.into_iter()
            .flat_map(|id| self.forget(id, u64::MAX))
            .collect()
    }

    /// One node of each file system that stores anything, to sync them all.
    #[must_use]
    pub fn one_of_each_device(&self) -> Vec<Arc<Node>> {
        let mut seen = HashMap::new();
        for entry in self.by_id.values() {
            let node = &entry.node;
            let stored = node.origin == Origin::Stored;
            if matches!(node.kind, FileType::Directory | FileType::RegularFile) && stored {
                seen.entry(node.host_device)
                    .or_insert_with(|| Arc::clone(node));
            }
        }
        seen.into_values().collect()
    }
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
