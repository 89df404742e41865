//! What an entry does to the image and the tree: types, whiteouts, hard links, attributes.
//!
//! Whiteouts become what overlayfs understands (OCI image-spec, layer.md "Whiteouts"): `.wh.NAME`
//! a character device 0:0 called NAME, `.wh..wh..opq` the attribute `trusted.overlay.opaque` on
//! its directory. A file beside its own whiteout stays: whiteouts are for the layers below only.

use std::io::{Read, Seek, Write};

use super::entries::{Entries, Entry, EntryKind};
use super::error::{EntryProblem, LayerError, printable};
use super::limits::Limits;
use super::sparse::Extent;
use super::tree::{
    Leaf, Node, NodeId, Refusal, Tree, WHITEOUT, components, opaque_name, raw_components,
};
use crate::erofs::{
    Attr, Child, DirInput, FileType, InodeId, Node as Special, Writer, XattrName, Xattrs,
};

/// Prefix of the metadata of aufs, of which only the opaque mark has a meaning.
const WHITEOUT_META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// All paths of directories without an entry, together, have at most this many bytes.
const MAX_IMPLICIT: u64 = 4 << 20;

/// What the image is like, before the end of the stream is known.
#[derive(Debug)]
pub(super) struct Applied {
    pub size: u64,
    /// Where each inode's record is in the image.
    pub inodes: Vec<u64>,
    pub implicit_dirs: Vec<Vec<u8>>,
    pub opaque_root: bool,
    pub dropped_xattrs: u64,
}

/// Applies entries to an image being written.
pub(super) struct Applier<'a, W> {
    writer: Writer<W>,
    tree: Tree<'a>,
    limits: &'a Limits,
    /// The one inode of all whiteouts.
    whiteout: Option<NodeId>,
    dropped_xattrs: u64,
}

impl<'a, W: Write + Seek> Applier<'a, W> {
    pub(super) fn new(writer: Writer<W>, limits: &'a Limits) -> Self {
        let tree = Tree::new(limits);
        Self {
            writer,
            tree,
            limits,
            whiteout: None,
            dropped_xattrs: 0,
        }
    }

    /// Applies one entry, whose data is read from `entries`.
    pub(super) fn apply<R: Read>(
        &mut self,
        entry: &Entry,
        entries: &mut Entries<'_, R>,
    ) -> Result<(), LayerError> {
        let path = &entry.path;
        let wrong = |problem| LayerError::entry(path, problem);
        let parts = components(path, self.limits).map_err(wrong)?;
        let attr = Attr {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime.0,
            mtime_nsec: entry.mtime.1,
        };
        let Some((&name, parents)) = parts.split_last() else {
            return self.root(entry, attr);
        };
        if parents.iter().any(|part| part.starts_with(WHITEOUT_META)) {
            return Ok(());
        }
        if parents.iter().any(|part| part.starts_with(WHITEOUT)) {
            return Err(wrong(EntryProblem::Whiteout));
        }
        if name == OPAQUE {
            let dir = self.tree.walk(parents, true).map_err(|r| r.at(path))?;
            if let Some(dir) = self.tree.dir_mut(dir) {
                dir.opaque = true;
            }
            return Ok(());
        }
        if name.starts_with(WHITEOUT_META) {
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(wrong(EntryProblem::Whiteout));
            }
            let dir = self.tree.walk(parents, true).map_err(|r| r.at(path))?;
            return self.hide(dir, hidden, path);
        }
        let xattrs = self.xattrs(entry)?;
        let dir = self.tree.walk(parents, true).map_err(|r| r.at(path))?;
        let id = match &entry.kind {
            EntryKind::Directory => {
                self.tree
                    .insert_dir(dir, name, attr, xattrs, false)
                    .map_err(|refusal| refusal.at(path))?;
                return Ok(());
            }
            EntryKind::HardLink(target) => self.link_target(path, target)?,
            EntryKind::File { size } => {
                let inode = self.file(*size, &attr, &xattrs, entries)?;
                self.leaf(inode, FileType::Regular, None, path)?
            }
            EntryKind::Sparse { size, map } => {
                let inode = self.sparse((*size, map), path, &attr, &xattrs, entries)?;
                self.leaf(inode, FileType::Regular, None, path)?
            }
            EntryKind::Symlink(target) => {
                let problem = match target {
                    target if target.is_empty() => Some(EntryProblem::EmptyTarget),
                    target if target.contains(&0) => Some(EntryProblem::Nul),
                    target if target.len() > self.limits.max_path => {
                        Some(EntryProblem::PathTooLong(self.limits.max_path))
                    }
                    _ => None,
                };
                if let Some(problem) = problem {
                    return Err(wrong(problem));
                }
                // Linux gives every link this mode, whatever the tar says.
                let attr = Attr {
                    mode: 0o777,
                    ..attr
                };
                let inode = self
                    .writer
                    .add_node(Special::Symlink(target), &attr, &xattrs)?;
                self.leaf(inode, FileType::Symlink, Some(target), path)?
            }
            EntryKind::CharDevice(major, minor) => {
                let node = Special::CharDevice(*major, *minor);
                let inode = self.writer.add_node(node, &attr, &xattrs)?;
                self.leaf(inode, FileType::CharDevice, None, path)?
            }
            EntryKind::BlockDevice(major, minor) => {
                let node = Special::BlockDevice(*major, *minor);
                let inode = self.writer.add_node(node, &attr, &xattrs)?;
                self.leaf(inode, FileType::BlockDevice, None, path)?
            }
            EntryKind::Fifo => {
                let inode = self.writer.add_node(Special::Fifo, &attr, &xattrs)?;
                self.leaf(inode, FileType::Fifo, None, path)?
            }
        };
        self.tree
            .link(dir, name, id)
            .map_err(|refusal| refusal.at(path))
    }

    /// An entry for the root itself. One that is no directory says nothing: the root is one.
    fn root(&mut self, entry: &Entry, attr: Attr) -> Result<(), LayerError> {
        if entry.kind != EntryKind::Directory {
            return Ok(());
        }
        let xattrs = self.xattrs(entry)?;
        if let Some(root) = self.tree.dir_mut(NodeId::ROOT) {
            (root.attr, root.xattrs) = (attr, xattrs);
        }
        Ok(())
    }

    fn leaf(
        &mut self,
        inode: InodeId,
        kind: FileType,
        target: Option<&[u8]>,
        path: &[u8],
    ) -> Result<NodeId, LayerError> {
        let leaf = Leaf {
            inode,
            kind,
            target: target.map(Into::into),
            whiteout: false,
        };
        self.tree
            .add(Node::Leaf(leaf))
            .map_err(|refusal| refusal.at(path))
    }

    /// Hides a name of the layers below.
    fn hide(&mut self, dir: NodeId, name: &[u8], path: &[u8]) -> Result<(), LayerError> {
        if let Some(id) = self.tree.child(dir, name) {
            // What this layer itself has there hides a file below as it is; a directory would
            // merge with one below.
            if let Some(dir) = self.tree.dir_mut(id) {
                dir.opaque = true;
            }
            return Ok(());
        }
        let id = match self.whiteout {
            Some(id) => id,
            None => {
                let device = Special::CharDevice(0, 0);
                let inode = self
                    .writer
                    .add_node(device, &Attr::default(), &Xattrs::default())?;
                let kind = FileType::CharDevice;
                let leaf = Leaf {
                    inode,
                    kind,
                    target: None,
                    whiteout: true,
                };
                let id = self
                    .tree
                    .add(Node::Leaf(leaf))
                    .map_err(|refusal| refusal.at(path))?;
                self.whiteout = Some(id);
                id
            }
        };
        self.tree
            .link(dir, name, id)
            .map_err(|refusal| refusal.at(path))
    }

    /// Finds the file a hard link is for.
    fn link_target(&mut self, path: &[u8], target: &[u8]) -> Result<NodeId, LayerError> {
        let missing = || LayerError::entry(path, EntryProblem::LinkTarget(printable(target)));
        if target.is_empty() {
            return Err(missing());
        }
        let wrong = |problem| LayerError::entry(path, problem);
        let cleaned = components(target, self.limits).map_err(wrong)?;
        let Some((&name, parents)) = cleaned.split_last() else {
            let problem = EntryProblem::LinkToDirectory(printable(target));
            return Err(wrong(problem));
        };
        // `..` behind a link leads to where the link leads, if what is on the way is there.
        let mut as_written = raw_components(target, self.limits).map_err(wrong)?;
        let found = match as_written.pop() {
            Some(last) if last == name => self.tree.walk(&as_written, false),
            _ => Err(EntryProblem::NotADirectory.into()),
        };
        let found = match found {
            Err(Refusal::Entry(EntryProblem::NotADirectory)) => self.tree.walk(parents, false),
            other => other,
        };
        let dir = match found {
            Ok(dir) => dir,
            Err(Refusal::Entry(EntryProblem::NotADirectory)) => return Err(missing()),
            Err(other) => return Err(other.at(path)),
        };
        let id = self.tree.child(dir, name).ok_or_else(missing)?;
        match self.tree.node(id) {
            Some(Node::Leaf(leaf)) if !leaf.whiteout => Ok(id),
            Some(Node::Dir(_)) => {
                let problem = EntryProblem::LinkToDirectory(printable(target));
                Err(LayerError::entry(path, problem))
            }
            _ => Err(missing()),
        }
    }

    fn file<R: Read>(
        &mut self,
        size: u64,
        attr: &Attr,
        xattrs: &Xattrs,
        entries: &mut Entries<'_, R>,
    ) -> Result<InodeId, LayerError> {
        let mut file = self.writer.begin_file(size);
        loop {
            let data = entries.data()?;
            if data.is_empty() {
                break;
            }
            self.writer.file_data(&mut file, data)?;
            let n = data.len();
            entries.used(n);
        }
        let (inode, pieces) = self.writer.end_file(file, attr, xattrs)?;
        entries.stored(&pieces)?;
        Ok(inode)
    }

    fn sparse<R: Read>(
        &mut self,
        (size, map): (u64, &[Extent]),
        path: &[u8],
        attr: &Attr,
        xattrs: &Xattrs,
        entries: &mut Entries<'_, R>,
    ) -> Result<InodeId, LayerError> {
        let mut file = self.writer.begin_sparse(size)?;
        // A header of a few hundred bytes can ask for an index of a MiB: all of them together are
        // held against the budget for what a layer describes.
        self.tree
            .charge(file.index_bytes())
            .map_err(|refusal| refusal.at(path))?;
        for extent in map {
            let (mut at, end) = (extent.offset, extent.offset.saturating_add(extent.len));
            while at < end {
                let data = entries.data()?;
                let room = usize::try_from(end - at).unwrap_or(usize::MAX);
                let data = data.get(..room).unwrap_or(data);
                if data.is_empty() {
                    // The map was checked against what is stored, so this cannot be.
                    return Err(LayerError::Truncated {
                        offset: at,
                        what: "a sparse file",
                    });
                }
                self.writer.sparse_data(&mut file, at, data)?;
                let n = data.len();
                entries.used(n);
                at += n as u64;
            }
        }
        let (inode, pieces) = self.writer.end_sparse(file, attr, xattrs)?;
        entries.stored(&pieces)?;
        Ok(inode)
    }

    /// The attributes that an entry may set. Those of overlayfs are left out: in a layer they
    /// would redirect to other files. So are name spaces that Linux does not have.
    fn xattrs(&mut self, entry: &Entry) -> Result<Xattrs, LayerError> {
        let mut out = Xattrs::default();
        for (name, value) in &entry.xattrs {
            let parsed = (!name.starts_with(b"trusted.overlay."))
                .then(|| XattrName::parse(name))
                .flatten();
            let Some(name) = parsed else {
                self.dropped_xattrs += 1;
                continue;
            };
            if !out.set(name, value) || out.bytes() > self.limits.max_xattr_bytes {
                let problem = EntryProblem::Xattrs(self.limits.max_xattr_bytes);
                return Err(LayerError::entry(&entry.path, problem));
            }
        }
        Ok(out)
    }

    /// Writes the directories and the superblock.
    pub(super) fn finish(mut self, uuid: [u8; 16]) -> Result<(W, Applied), LayerError> {
        let (order, counts) = self.tree.reachable();
        if let Some(name) = opaque_name() {
            for id in &order {
                if let Some(dir) = self.tree.dir_mut(*id)
                    && dir.opaque
                {
                    dir.xattrs.set(name.clone(), b"y");
                }
            }
        }
        let mut numbers = vec![0_usize; self.tree.len()];
        for (number, id) in order.iter().enumerate() {
            if let Some(slot) = numbers.get_mut(id.index()) {
                *slot = number;
            }
        }
        let number = |id: NodeId| numbers.get(id.index()).copied().unwrap_or_default();
        let mut links = Vec::new();
        let mut names: Vec<&[u8]> = vec![&[]; order.len()];
        let mut dirs = Vec::with_capacity(order.len());
        for id in &order {
            let Some(dir) = self.tree.dir(*id) else {
                continue;
            };
            let mut entries = Vec::with_capacity(dir.children.len());
            for (name, id) in &dir.children {
                let child = match self.tree.node(*id) {
                    Some(Node::Leaf(leaf)) => Child::Inode(leaf.inode, leaf.kind),
                    _ => {
                        if let Some(slot) = names.get_mut(number(*id)) {
                            *slot = name;
                        }
                        Child::Dir(number(*id))
                    }
                };
                entries.push((&**name, child));
            }
            dirs.push(DirInput {
                attr: &dir.attr,
                xattrs: &dir.xattrs,
                parent: number(dir.parent),
                entries,
            });
        }
        for (index, count) in counts.iter().enumerate() {
            if *count > 1
                && let Some(Node::Leaf(leaf)) = self.tree.at(index)
            {
                links.push((leaf.inode, *count));
            }
        }
        let mut implicit_dirs = Vec::new();
        let mut implicit_bytes = 0_u64;
        for id in &order {
            if !self.tree.dir(*id).is_some_and(|dir| dir.implicit) {
                continue;
            }
            let mut path: Vec<&[u8]> = Vec::new();
            let mut at = number(*id);
            while at != 0 {
                path.push(names.get(at).copied().unwrap_or_default());
                at = dirs.get(at).map_or(0, |dir| dir.parent);
            }
            path.reverse();
            let path = path.join(&b'/');
            implicit_bytes += path.len() as u64;
            if implicit_bytes > MAX_IMPLICIT {
                let what = "bytes of paths of directories without an entry";
                return Err(LayerError::Limit {
                    what,
                    limit: MAX_IMPLICIT,
                });
            }
            implicit_dirs.push(path);
        }
        let opaque_root = self.tree.dir(NodeId::ROOT).is_some_and(|root| root.opaque);
        let dropped_xattrs = self.dropped_xattrs;
        let finished = self.writer.finish(&dirs, links, uuid)?;
        Ok((
            finished.out,
            Applied {
                size: finished.size,
                inodes: finished.inodes,
                implicit_dirs,
                opaque_root,
                dropped_xattrs,
            },
        ))
    }
}
