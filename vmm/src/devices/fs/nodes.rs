//! The files the guest has looked up (nodes), each behind a number that is never given twice. The
//! table is bounded. Files it has open are in `handles`.
//!
//! A node is an `O_PATH` descriptor: it names the file for good, whatever becomes of its name, and
//! grants nothing by itself. No path is ever kept.

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{FileType, StatVfsMountFlags, Statx};
use rustix::io::Errno;

use super::abi::ROOT;
use bulkhead_contract::vmm::SEALED_SUFFIX;

/// The most file systems that are distinguished in the guest's inode numbers.
const MAX_DEVICES: usize = 4096;

/// By how many mounts beside the leading one a file is known at most.
const MAX_OTHERS: usize = 32;

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
/// whatever mount it was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    device: u64,
    inode: u64,
    side: Side,
}

/// Which of the nodes that one file may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Side {
    /// The one of a file.
    Any,
    /// Of this mount alone. A directory's, as others may be mounted on what is in it; and a file's
    /// by a mount that nothing but itself keeps read-only.
    Mount(u64),
}

/// Where in the share a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// It is the share's root.
    Root,
    /// In a volume that the guest itself lets nobody write, whatever its mounts allow.
    Sealed,
    /// In a volume whose mounts say what is written.
    Open,
}

impl Place {
    /// The place of a file of this name in a directory that is here.
    #[must_use]
    pub fn below(self, name: &CStr) -> Place {
        match self {
            Place::Root if name.to_bytes().ends_with(SEALED_SUFFIX.as_bytes()) => Place::Sealed,
            Place::Root => Place::Open,
            place => place,
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
    /// Its inode number there.
    inode: u64,
    /// The mount it was reached by.
    mount: u64,
    place: Place,
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

    /// The place of a file of this name in it.
    #[must_use]
    pub fn place_of(&self, name: &CStr) -> Place {
        self.place.below(name)
    }

    fn key(&self, side: Side) -> Key {
        Key {
            device: self.host_device,
            inode: self.inode,
            side,
        }
    }

    /// Whether its mount and its file system are written to.
    fn is_writable(&self) -> Result<bool, Errno> {
        let of = rustix::fs::fstatvfs(&self.fd)?;
        Ok(!of.f_flag.contains(StatVfsMountFlags::RDONLY))
    }

    /// How it goes with the file's node that was reached by another mount. Asks the file system.
    ///
    /// # Errors
    /// Those of fstatvfs(2).
    pub fn beside(&self, leading: &Node) -> Result<Beside, Errno> {
        if self.place == Place::Sealed {
            return Ok(Beside::Follows);
        }
        // Not either of the two where both are read-only: it may be the file system that is, for a
        // while.
        Ok(match (self.is_writable()?, leading.place) {
            (false, _) => Beside::Alone,
            (true, Place::Sealed) => Beside::Leads,
            (true, _) if leading.is_writable()? => Beside::Follows,
            (true, _) => Beside::Displaces,
        })
    }
}

/// How a file goes with what the guest knows of it by another mount. A container of the guest that
/// has a file by a read-only mount must not write it for having it beside one that is written,
/// unless the guest itself keeps the container from that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    /// One node, and requests go through the mount they went through before.
    Follows,
    /// One node, and requests go through this mount from now on.
    Leads,
    /// Another node: this mount is read-only.
    Alone,
    /// The one node from now on: the other mount is read-only, and its node is its own.
    Displaces,
}

/// What [`Nodes::add`] found.
#[derive(Debug)]
pub enum Added {
    /// The guest knows the file by this mount, or by none.
    Known(u64, Arc<Node>),
    /// It knows it by others, and goes through this one: see [`Nodes::add_beside`].
    Met(Arc<Node>),
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
        let root = nodes.make(root, stat, FileType::Directory, Origin::Stored, Place::Root);
        // The table has room for one.
        let _ = nodes.add(&root);
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

    /// A file, of which the guest is not told yet.
    pub fn make(
        &mut self,
        fd: OwnedFd,
        stat: &Statx,
        kind: FileType,
        origin: Origin,
        place: Place,
    ) -> Arc<Node> {
        let host_device = device_of(stat);
        Arc::new(Node {
            fd,
            kind,
            device: self.device_number(host_device),
            origin,
            host_device,
            inode: stat.stx_ino,
            mount: stat.stx_mnt_id,
            place,
        })
    }

    /// Tells the guest of a file: its number, new or not.
    ///
    /// # Errors
    /// NFILE when the table is full.
    pub fn add(&mut self, node: &Arc<Node>) -> Result<Added, Errno> {
        if node.kind == FileType::Directory {
            let side = Side::Mount(node.mount);
            return match self.by_key.get(&node.key(side)).copied() {
                Some(id) => self.again(id, node.mount),
                None => self.insert(node, side),
            };
        }
        for side in [Side::Any, Side::Mount(node.mount)] {
            if let Some(id) = self.by_key.get(&node.key(side)).copied()
                && let Ok(known) = self.again(id, node.mount)
            {
                return Ok(known);
            }
        }
        match self.by_key.get(&node.key(Side::Any)) {
            Some(id) => Ok(Added::Met(self.get(*id)?)),
            None => self.insert(node, Side::Any),
        }
    }

    /// Tells the guest of a file that it knows by other mounts, of which `leading` was met. When
    /// that has changed since, it has met another. What the table lets go of for it is given back, to
    /// be closed outside of the lock.
    ///
    /// # Errors
    /// NFILE when the table is full.
    pub fn add_beside(
        &mut self,
        node: &Arc<Node>,
        leading: &Arc<Node>,
        beside: Beside,
    ) -> Result<(Added, Option<Arc<Node>>), Errno> {
        match self.add(node)? {
            Added::Met(met) if Arc::ptr_eq(&met, leading) => {}
            other => return Ok((other, None)),
        }
        let met = self.by_key.get(&node.key(Side::Any)).copied();
        let met = met.ok_or(Errno::STALE)?;
        let own = leading.key(Side::Mount(leading.mount));
        match beside {
            Beside::Follows => self.join(met, node, false),
            Beside::Leads => self.join(met, node, true),
            Beside::Displaces if self.count() < self.max && !self.by_key.contains_key(&own) => {
                if let Some(entry) = self.by_id.get_mut(&met) {
                    entry.key = own;
                }
                self.by_key.insert(own, met);
                self.by_key.remove(&node.key(Side::Any));
                Ok((self.insert(node, Side::Any)?, None))
            }
            Beside::Alone | Beside::Displaces => {
                Ok((self.insert(node, Side::Mount(node.mount))?, None))
            }
        }
    }

    /// The guest has looked a file up once more, by a mount it did so before.
    fn again(&mut self, id: u64, mount: u64) -> Result<Added, Errno> {
        let entry = self.by_id.get_mut(&id).ok_or(Errno::STALE)?;
        let mut by_any = std::iter::once(&entry.node).chain(&entry.others);
        let node = by_any.find(|node| node.mount == mount).cloned();
        let node = node.ok_or(Errno::STALE)?;
        entry.count = entry.count.saturating_add(1);
        Ok(Added::Known(id, node))
    }

    fn insert(&mut self, node: &Arc<Node>, side: Side) -> Result<Added, Errno> {
        let key = node.key(side);
        if let Some(id) = self.by_key.get(&key).copied() {
            return self.again(id, node.mount);
        }
        if self.count() >= self.max {
            return Err(Errno::NFILE);
        }
        let id = self.next;
        self.next += 1;
        let entry = Entry {
            key,
            node: Arc::clone(node),
            others: Vec::new(),
            count: 1,
        };
        self.by_id.insert(id, entry);
        self.by_key.insert(key, id);
        Ok(Added::Known(id, Arc::clone(node)))
    }

    /// One more mount of a file. When there are many the oldest goes: a file that stays open keeps
    /// what was found by mounts that are long gone, of containers that were started again and again.
    fn join(
        &mut self,
        id: u64,
        node: &Arc<Node>,
        leads: bool,
    ) -> Result<(Added, Option<Arc<Node>>), Errno> {
        let full = self.count() >= self.max;
        let entry = self.by_id.get_mut(&id).ok_or(Errno::STALE)?;
        let oldest = (entry.others.len() >= MAX_OTHERS).then(|| entry.others.remove(0));
        match &oldest {
            Some(_) => self.others -= 1,
            None if full => return Err(Errno::NFILE),
            None => {}
        }
        let mut other = Arc::clone(node);
        if leads {
            std::mem::swap(&mut other, &mut entry.node);
        }
        entry.others.push(other);
        entry.count = entry.count.saturating_add(1);
        self.others += 1;
        Ok((Added::Known(id, Arc::clone(node)), oldest))
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
