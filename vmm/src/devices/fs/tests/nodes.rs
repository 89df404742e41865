//! The table of files the guest knows: one file reached by several mounts.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::super::nodes::{Added, Beside, Node, Nodes, Origin, Place};
use super::super::server::stat;

/// A table, and one file and one directory that are reached by made-up mounts.
struct Table {
    nodes: Nodes,
    file: File,
    dir: File,
}

impl Table {
    fn new(max: usize) -> Self {
        let root = File::open("/").unwrap();
        let root_stat = stat(&root).unwrap();
        Table {
            nodes: Nodes::new(root.into(), &root_stat, max),
            file: tempfile::tempfile().unwrap(),
            dir: File::open(std::env::temp_dir()).unwrap(),
        }
    }

    fn reached(&mut self, mount: u64, kind: FileType) -> Arc<Node> {
        let of = match kind {
            FileType::Directory => &self.dir,
            _ => &self.file,
        };
        let fd: OwnedFd = of.try_clone().unwrap().into();
        let mut stat = stat(&fd).unwrap();
        stat.stx_mnt_id = mount;
        self.nodes
            .make(fd, &stat, kind, Origin::Stored, Place::Open)
    }

    /// Looks the file up by `mount`; when it is known by others, `beside` is how it goes with them.
    fn look_up(&mut self, mount: u64, beside: Beside) -> Result<u64, Errno> {
        let node = self.reached(mount, FileType::RegularFile);
        let added = match self.nodes.add(&node)? {
            Added::Met(leading) => self.nodes.add_beside(&node, &leading, beside)?.0,
            known @ Added::Known(..) => known,
        };
        match added {
            Added::Known(id, found) => {
                assert!(found.same_mount(&self.stat(mount)));
                Ok(id)
            }
            Added::Met(_) => panic!("met twice"),
        }
    }

    fn stat(&self, mount: u64) -> rustix::fs::Statx {
        let mut stat = stat(&self.file).unwrap();
        stat.stx_mnt_id = mount;
        stat
    }

    fn leads(&self, id: u64, mount: u64) -> bool {
        self.nodes.get(id).unwrap().same_mount(&self.stat(mount))
    }
}

#[test]
fn a_file_is_one_by_all_its_mounts_and_goes_when_all_are_forgotten() {
    let mut table = Table::new(10);
    let id = table.look_up(1, Beside::Follows).unwrap();
    assert_eq!(table.look_up(2, Beside::Follows), Ok(id));
    assert!(table.leads(id, 1));
    assert_eq!(table.look_up(3, Beside::Leads), Ok(id));
    assert!(table.leads(id, 3));
    // Again by each: nothing new.
    for mount in [1, 2, 3] {
        assert_eq!(table.look_up(mount, Beside::Displaces), Ok(id));
    }
    assert_eq!(table.nodes.count(), 1 + 3);
    // A link is made by the mount of its directory, by the leading one where there is none.
    for (dir, expected) in [(1, 1), (2, 2), (3, 3), (4, 3)] {
        let dir = table.reached(dir, FileType::Directory);
        let from = table.nodes.get_beside(id, &dir).unwrap();
        assert!(from.same_mount(&table.stat(expected)));
    }
    assert!(table.nodes.forget(id, 5).is_empty());
    assert_eq!(table.nodes.forget(id, 1).len(), 3);
    assert_eq!(table.nodes.count(), 1);
    assert_eq!(table.nodes.get(id).unwrap_err(), Errno::STALE);
    assert_ne!(table.look_up(2, Beside::Follows), Ok(id));
}

#[test]
fn a_read_only_mount_stands_alone() {
    let mut table = Table::new(10);
    let written = table.look_up(1, Beside::Follows).unwrap();
    let alone = table.look_up(2, Beside::Alone).unwrap();
    let other = table.look_up(3, Beside::Alone).unwrap();
    assert!(written != alone && alone != other && other != written);
    assert_eq!(table.look_up(4, Beside::Follows), Ok(written));
    for (mount, id) in [(1, written), (2, alone), (3, other), (4, written)] {
        assert_eq!(table.look_up(mount, Beside::Displaces), Ok(id));
    }
    // Who is left when the one is forgotten changes nothing for those that come.
    assert_eq!(table.nodes.forget(written, 4).len(), 2);
    let written = table.look_up(4, Beside::Follows).unwrap();
    assert_eq!(table.look_up(1, Beside::Follows), Ok(written));
    assert_eq!(table.look_up(2, Beside::Follows), Ok(alone));

    // Found first, the read-only one keeps its number.
    let mut table = Table::new(10);
    let alone = table.look_up(1, Beside::Follows).unwrap();
    let written = table.look_up(2, Beside::Displaces).unwrap();
    assert_ne!(written, alone);
    assert_eq!(table.look_up(1, Beside::Follows), Ok(alone));
    assert_eq!(table.look_up(3, Beside::Follows), Ok(written));
    assert!(table.leads(written, 2) && table.leads(alone, 1));
    assert_eq!(table.nodes.forget(alone, 2).len(), 1);
    assert_eq!(table.look_up(2, Beside::Alone), Ok(written));
}

#[test]
fn mounts_that_come_and_go_do_not_fill_the_table() {
    let mut table = Table::new(100);
    let id = table.look_up(1, Beside::Follows).unwrap();
    for mount in 2..1000 {
        assert_eq!(table.look_up(mount, Beside::Follows), Ok(id));
    }
    assert!(table.nodes.count() < 40, "{}", table.nodes.count());
    assert!(table.leads(id, 1));
    // Those of late are there.
    let dir = table.reached(999, FileType::Directory);
    let from = table.nodes.get_beside(id, &dir).unwrap();
    assert!(from.same_mount(&table.stat(999)));
    assert_eq!(table.nodes.forget(id, 999).len(), 33);
    assert_eq!(table.nodes.count(), 1);
}

#[test]
fn what_was_met_may_have_changed() {
    let mut table = Table::new(10);
    table.look_up(1, Beside::Follows).unwrap();
    let node = table.reached(2, FileType::RegularFile);
    let Ok(Added::Met(leading)) = table.nodes.add(&node) else {
        panic!("not met");
    };
    table.look_up(3, Beside::Leads).unwrap();
    let again = table.nodes.add_beside(&node, &leading, Beside::Follows);
    assert!(matches!(again, Ok((Added::Met(other), None)) if other.same_mount(&table.stat(3))));
}

#[test]
fn descriptors_are_bounded_by_each_mount() {
    let mut table = Table::new(3);
    let id = table.look_up(1, Beside::Follows).unwrap();
    assert_eq!(table.look_up(2, Beside::Follows), Ok(id));
    for beside in [
        Beside::Follows,
        Beside::Leads,
        Beside::Alone,
        Beside::Displaces,
    ] {
        assert_eq!(table.look_up(3, beside), Err(Errno::NFILE));
    }
    // A directory is another one by each mount.
    let dir = table.reached(1, FileType::Directory);
    assert_eq!(table.nodes.add(&dir).unwrap_err(), Errno::NFILE);
    // What failed counts for nothing.
    assert_eq!(table.nodes.forget(id, 2).len(), 2);
    for mount in [1, 2] {
        let dir = table.reached(mount, FileType::Directory);
        assert!(matches!(table.nodes.add(&dir), Ok(Added::Known(..))));
    }
    assert_eq!(table.nodes.count(), 3);
}
