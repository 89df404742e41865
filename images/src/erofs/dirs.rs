//! Directory data: entries in the order of their names, split into blocks.

use super::format::{BLOCK, DIRENT_SIZE, FileType, INODE_SIZE, put16, put64};
use super::inode::{Attr, InodeId};
use super::xattr::Xattrs;

/// One directory to write. Directories are numbered by their place in the list that the writer is
/// given; number 0 is the root.
#[derive(Debug, Clone)]
pub struct DirInput<'a> {
    /// Owner, permissions, time.
    pub attr: &'a Attr,
    /// Extended attributes.
    pub xattrs: &'a Xattrs,
    /// Number of the parent directory; the root is its own.
    pub parent: usize,
    /// Names in ascending byte order, without `.` and `..`.
    pub entries: Vec<(&'a [u8], Child)>,
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Child {
    /// The directory of this number.
    Dir(usize),
    /// An inode written before.
    Inode(InodeId, FileType),
}

impl DirInput<'_> {
    /// Two, and one for each directory in it.
    pub(super) fn nlink(&self) -> u32 {
        let subdirs = self
            .entries
            .iter()
            .filter(|(_, child)| matches!(child, Child::Dir(_)));
        u32::try_from(subdirs.count()).unwrap_or(u32::MAX - 2) + 2
    }

    /// The entries with `.` and `..` in their places.
    pub(super) fn all(&self, this: usize) -> Vec<(&[u8], Child)> {
        let mut all = Vec::with_capacity(self.entries.len() + 2);
        all.extend_from_slice(&self.entries);
        for (name, number) in [(&b"."[..], this), (b"..", self.parent)] {
            let at = all.partition_point(|(other, _)| *other < name);
            all.insert(at, (name, Child::Dir(number)));
        }
        all
    }
}

/// How the entries of one directory are split.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct DirPlan {
    /// Blocks in the data area.
    pub blocks: usize,
    /// Bytes behind the inode.
    pub tail: usize,
    /// Size of the directory.
    pub size: usize,
}

/// Splits a directory. `room` is what is left for a tail in the inode's block.
pub(super) fn plan(entries: &[(&[u8], Child)], room: usize) -> DirPlan {
    let (mut blocks, mut used) = (0, 0);
    for (name, _) in entries {
        let len = DIRENT_SIZE + name.len();
        if used + len > BLOCK {
            blocks += 1;
            used = 0;
        }
        used += len;
    }
    let size = blocks * BLOCK + used;
    if used < BLOCK && used <= room {
        DirPlan {
            blocks,
            tail: used,
            size,
        }
    } else {
        DirPlan {
            blocks: blocks + 1,
            tail: 0,
            size,
        }
    }
}

/// The blocks of a directory, each but the last filled up with zeros.
pub(super) fn encode(
    entries: &[(&[u8], Child)],
    nid: impl Fn(Child) -> (u64, FileType),
) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    let mut block: Vec<(&[u8], Child)> = Vec::new();
    let mut used = 0;
    for &(name, child) in entries {
        let len = DIRENT_SIZE + name.len();
        if used + len > BLOCK {
            let mut full = encode_block(&block, &nid);
            full.resize(BLOCK, 0);
            out.push(full);
            block.clear();
            used = 0;
        }
        block.push((name, child));
        used += len;
    }
    out.push(encode_block(&block, &nid));
    out
}

fn encode_block(entries: &[(&[u8], Child)], nid: impl Fn(Child) -> (u64, FileType)) -> Vec<u8> {
    let mut out = Vec::with_capacity(BLOCK);
    let mut name_offset = entries.len() * DIRENT_SIZE;
    for (name, child) in entries {
        let (nid, kind) = nid(*child);
        put64(&mut out, nid);
        // A block has 4096 bytes, so an offset in it always fits.
        put16(&mut out, u16::try_from(name_offset).unwrap_or(u16::MAX));
        out.extend_from_slice(&[kind.dirent(), 0]);
        name_offset += name.len();
    }
    for (name, _) in entries {
        out.extend_from_slice(name);
    }
    out
}

/// Room for a tail behind an inode with these attributes, when the record may have `max` bytes.
pub(super) fn tail_room(xattrs: &Xattrs, max: usize) -> usize {
    max.saturating_sub(INODE_SIZE + xattrs.encoded_len())
}
