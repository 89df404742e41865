//! The tree of a layer, in memory: names, directories, and the numbers of inodes that are
//! already in the image.
//!
//! Paths are resolved here as a kernel would inside a chroot: symbolic links of the layer are
//! followed for parents, never for the last component, and nothing leads above the root. So an
//! entry below a link lands where it would land in an unpacked layer, and nowhere else.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::error::{EntryProblem, LayerError};
use super::limits::Limits;
use crate::erofs::{Attr, FileType, InodeId, XattrName, Xattrs};

/// As many links are followed in one path as the kernel follows.
const MAX_LINKS: u32 = 40;
/// How many components of link targets all paths of a layer together may walk.
const MAX_LINK_STEPS: u64 = 1 << 24;
/// Bytes that a name, and a directory, cost beyond their lengths.
const NAME_COST: u64 = 64;
const DIR_COST: u64 = 256;
/// A directory that the layer does not describe.
const IMPLICIT: Attr = Attr {
    mode: 0o755,
    uid: 0,
    gid: 0,
    mtime: 0,
    mtime_nsec: 0,
};

/// A node of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NodeId(u32);

impl NodeId {
    pub(super) const ROOT: Self = Self(0);

    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// A file, link, device, pipe or whiteout: its inode is in the image already.
#[derive(Debug, Clone)]
pub(super) struct Leaf {
    pub inode: InodeId,
    pub kind: FileType,
    /// Target of a symbolic link.
    pub target: Option<Box<[u8]>>,
    pub whiteout: bool,
}

/// A directory.
#[derive(Debug, Clone)]
pub(super) struct Dir {
    pub parent: NodeId,
    pub attr: Attr,
    pub xattrs: Xattrs,
    /// Hides what layers below have in it.
    pub opaque: bool,
    /// No entry described it.
    pub implicit: bool,
    depth: u32,
    pub children: BTreeMap<Box<[u8]>, NodeId>,
}

#[derive(Debug)]
pub(super) enum Node {
    Dir(Box<Dir>),
    Leaf(Leaf),
}

/// Why a path was refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Entry(EntryProblem),
    Limit { what: &'static str, limit: u64 },
}

impl Refusal {
    pub(super) fn at(self, path: &[u8]) -> LayerError {
        match self {
            Self::Entry(problem) => LayerError::entry(path, problem),
            Self::Limit { what, limit } => LayerError::Limit { what, limit },
        }
    }
}

impl From<EntryProblem> for Refusal {
    fn from(problem: EntryProblem) -> Self {
        Self::Entry(problem)
    }
}

/// The tree of one layer.
#[derive(Debug)]
pub(super) struct Tree<'a> {
    nodes: Vec<Node>,
    limits: &'a Limits,
    memory: u64,
    link_steps: u64,
}

impl<'a> Tree<'a> {
    pub(super) fn new(limits: &'a Limits) -> Self {
        let root = Dir {
            parent: NodeId::ROOT,
            attr: IMPLICIT,
            xattrs: Xattrs::default(),
            opaque: false,
            // Nothing depends on the root's attributes: a container's root is made elsewhere.
            implicit: false,
            depth: 0,
            children: BTreeMap::new(),
        };
        let nodes = vec![Node::Dir(Box::new(root))];
        Self {
            nodes,
            limits,
            memory: 0,
            link_steps: 0,
        }
    }

    pub(super) fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.index())
    }

    /// The node of a place in the lists that [`Self::reachable`] returns.
    pub(super) fn at(&self, index: usize) -> Option<&Node> {
        self.nodes.get(index)
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn dir(&self, id: NodeId) -> Option<&Dir> {
        match self.nodes.get(id.index()) {
            Some(Node::Dir(dir)) => Some(dir),
            _ => None,
        }
    }

    pub(super) fn dir_mut(&mut self, id: NodeId) -> Option<&mut Dir> {
        match self.nodes.get_mut(id.index()) {
            Some(Node::Dir(dir)) => Some(dir),
            _ => None,
        }
    }

    pub(super) fn child(&self, dir: NodeId, name: &[u8]) -> Option<NodeId> {
        self.dir(dir)?.children.get(name).copied()
    }

    /// Finds the directory that `components` name, following links; with `create`, directories
    /// that are missing are made, and a whiteout on the way becomes an opaque directory.
    pub(super) fn walk(&mut self, components: &[&[u8]], create: bool) -> Result<NodeId, Refusal> {
        let mut at = NodeId::ROOT;
        let mut todo: Vec<Cow<'_, [u8]>> =
            components.iter().rev().map(|c| Cow::Borrowed(*c)).collect();
        let mut links = 0;
        while let Some(name) = todo.pop() {
            match &name[..] {
                b"" | b"." => continue,
                b".." => {
                    at = self.dir(at).map_or(NodeId::ROOT, |dir| dir.parent);
                    continue;
                }
                _ => {}
            }
            let child = self.child(at, &name);
            at = match child.and_then(|id| Some((id, self.node(id)?))) {
                Some((id, Node::Dir(_))) => id,
                Some((
                    _,
                    Node::Leaf(Leaf {
                        target: Some(target),
                        ..
                    }),
                )) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(EntryProblem::Loop.into());
                    }
                    if target.first() == Some(&b'/') {
                        at = NodeId::ROOT;
                    }
                    let parts = target
                        .rsplit(|b| *b == b'/')
                        .map(|p| Cow::Owned(p.to_vec()));
                    let before = todo.len();
                    todo.extend(parts);
                    self.link_steps += (todo.len() - before) as u64;
                    if self.link_steps > MAX_LINK_STEPS {
                        let what = "steps through symbolic links";
                        return Err(Refusal::Limit {
                            what,
                            limit: MAX_LINK_STEPS,
                        });
                    }
                    continue;
                }
                Some((_, Node::Leaf(leaf))) if !leaf.whiteout => {
                    return Err(EntryProblem::NotADirectory.into());
                }
                _ if !create => return Err(EntryProblem::NotADirectory.into()),
                _ => self.insert_dir(at, &name, IMPLICIT, Xattrs::default(), true)?,
            };
        }
        Ok(at)
    }

    /// Puts a directory in place: one that is there keeps its content and gets the attributes,
    /// anything else is replaced.
    pub(super) fn insert_dir(
        &mut self,
        parent: NodeId,
        name: &[u8],
        attr: Attr,
        xattrs: Xattrs,
        implicit: bool,
    ) -> Result<NodeId, Refusal> {
        self.charge(xattrs.bytes() as u64 + DIR_COST)?;
        let old = self.child(parent, name);
        if let Some(id) = old
            && let Some(dir) = self.dir_mut(id)
        {
            (dir.attr, dir.xattrs, dir.implicit) = (attr, xattrs, implicit);
            return Ok(id);
        }
        // A whiteout hides what is below; a directory in its place must go on hiding it.
        let node = old.and_then(|id| self.node(id));
        let opaque = matches!(node, Some(Node::Leaf(Leaf { whiteout: true, .. })));
        let depth = self.dir(parent).map_or(0, |dir| dir.depth) + 1;
        if depth > self.limits.max_depth {
            return Err(EntryProblem::TooDeep(self.limits.max_depth).into());
        }
        let children = BTreeMap::new();
        let dir = Dir {
            parent,
            attr,
            xattrs,
            opaque,
            implicit,
            depth,
            children,
        };
        let id = self.add(Node::Dir(Box::new(dir)))?;
        self.link(parent, name, id)?;
        Ok(id)
    }

    /// Adds a node that no name stands for yet.
    pub(super) fn add(&mut self, node: Node) -> Result<NodeId, Refusal> {
        let limit = self.limits.max_entries;
        if self.nodes.len() as u64 > limit {
            return Err(Refusal::Limit {
                what: "files and directories",
                limit,
            });
        }
        if let Node::Leaf(Leaf {
            target: Some(target),
            ..
        }) = &node
        {
            self.charge(target.len() as u64)?;
        }
        let id = u32::try_from(self.nodes.len());
        let id = id.map_err(|_| Refusal::Limit {
            what: "files and directories",
            limit,
        })?;
        self.nodes.push(node);
        Ok(NodeId(id))
    }

    /// Lets a name stand for a node, whatever it stood for before.
    pub(super) fn link(&mut self, dir: NodeId, name: &[u8], id: NodeId) -> Result<(), Refusal> {
        // The target of a link may name directories that are made for it.
        if name.len() > MAX_NAME {
            return Err(EntryProblem::NameTooLong.into());
        }
        self.charge(name.len() as u64 + NAME_COST)?;
        if let Some(dir) = self.dir_mut(dir) {
            dir.children.insert(name.into(), id);
        }
        Ok(())
    }

    /// Counts bytes against [`Limits::max_memory_bytes`].
    pub(super) fn charge(&mut self, bytes: u64) -> Result<(), Refusal> {
        let limit = self.limits.max_memory_bytes;
        self.memory = self.memory.saturating_add(bytes);
        if self.memory > limit {
            return Err(Refusal::Limit {
                what: "bytes of names, attributes and indexes",
                limit,
            });
        }
        Ok(())
    }

    /// All directories that can be reached, parents before children, and how often each node is
    /// linked.
    pub(super) fn reachable(&self) -> (Vec<NodeId>, Vec<u32>) {
        let mut order = Vec::new();
        let mut counts = vec![0_u32; self.nodes.len()];
        let mut todo = vec![NodeId::ROOT];
        while let Some(id) = todo.pop() {
            let Some(dir) = self.dir(id) else { continue };
            order.push(id);
            for child in dir.children.values().rev() {
                if let Some(count) = counts.get_mut(child.index()) {
                    *count = count.saturating_add(1);
                }
                if self.dir(*child).is_some() {
                    todo.push(*child);
                }
            }
        }
        (order, counts)
    }
}

/// Most bytes of a name (NAME_MAX).
const MAX_NAME: usize = 255;

/// What an entry's last name begins with to hide another.
pub(super) const WHITEOUT: &[u8] = b".wh.";

/// Splits a path into its components, cleaned as Go's `filepath.Clean` does, by which containerd
/// and the builders go: absolute or not, `a/../b` is `b`, and nothing leads above the root. None
/// at all stand for the root.
pub(super) fn components<'p>(
    path: &'p [u8],
    limits: &Limits,
) -> Result<Vec<&'p [u8]>, EntryProblem> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in raw_components(path, limits)? {
        if part == b".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    let Some((last, parents)) = parts.split_last() else {
        return Ok(parts);
    };
    // A whiteout is no file: what it hides may have as long a name as a file.
    let longest = if last.starts_with(WHITEOUT) {
        WHITEOUT.len() + MAX_NAME
    } else {
        MAX_NAME
    };
    if last.len() > longest || parents.iter().any(|part| part.len() > MAX_NAME) {
        return Err(EntryProblem::NameTooLong);
    }
    Ok(parts)
}

/// The components as they stand there, `..` included; doubled slashes and `.` left out.
pub(super) fn raw_components<'p>(
    path: &'p [u8],
    limits: &Limits,
) -> Result<Vec<&'p [u8]>, EntryProblem> {
    if path.len() > limits.max_path {
        return Err(EntryProblem::PathTooLong(limits.max_path));
    }
    if path.contains(&0) {
        return Err(EntryProblem::Nul);
    }
    let parts = path.split(|b| *b == b'/');
    Ok(parts.filter(|part| !matches!(*part, b"" | b".")).collect())
}

/// The attribute by which overlayfs knows an opaque directory.
pub(super) fn opaque_name() -> Option<XattrName> {
    XattrName::parse(b"trusted.overlay.opaque")
}
