//! The end of an image: directories, which need the places of all inodes, and the superblock.

use std::io::{Seek, Write};

use super::dirs::{self, Child, DirInput, DirPlan};
use super::format::{
    BLOCK, FileType, INODE_SIZE, Layout, NLINK_OFFSET, NULL_BLOCK, SLOT, SLOTS_PER_BLOCK,
    SUPER_OFFSET, SUPER_SIZE, SuperBlock,
};
use super::inode::{InodeId, WriterError};
use super::meta::MetaRun;
use super::output::Output;
use super::writer::{META_RUN, Writer, record};

/// The slot of the root inode: the first behind the superblock.
const ROOT_SLOT: u16 = 36;
const _: () = assert!(ROOT_SLOT as usize * SLOT == SUPER_OFFSET + SUPER_SIZE);
/// Bytes for the root inode, its attributes and its tail.
const ROOT_ROOM: usize = BLOCK - SUPER_OFFSET - SUPER_SIZE;

/// An image that is whole.
#[derive(Debug)]
pub struct Finished<W> {
    /// The file or buffer.
    pub out: W,
    /// The length of the image in bytes.
    pub size: u64,
    /// Where each inode's record is, in the order in which they were added: bytes from the
    /// beginning of the image.
    pub inodes: Vec<u64>,
}

impl<W: Write + Seek> Writer<W> {
    /// Writes the directories (the first is the root) and the superblock. The file is flushed, but
    /// not synced. `links` gives the inodes that have
    /// another number of links than one.
    ///
    /// # Errors
    /// When the attributes of the root do not fit, or writing fails.
    pub fn finish(
        mut self,
        dirs: &[DirInput<'_>],
        links: impl IntoIterator<Item = (InodeId, u32)>,
        uuid: [u8; 16],
    ) -> Result<Finished<W>, WriterError> {
        self.flush_run()?;
        let tree = self.place_dirs(dirs)?;
        let mut first_block = Vec::new();
        let mut area = tree.area;
        let places = &self.places;
        let lookup = |child: Child| match child {
            Child::Dir(n) => (
                tree.nids.get(n).copied().unwrap_or_default(),
                FileType::Directory,
            ),
            Child::Inode(id, kind) => (places.nid(id), kind),
        };
        let mut start = self.out.block();
        let mut data = Vec::new();
        for (n, (dir, plan)) in dirs.iter().zip(&tree.plans).enumerate() {
            let mut blocks = dirs::encode(&dir.all(n), lookup);
            let tail = if plan.tail > 0 {
                blocks.pop().unwrap_or_default()
            } else {
                Vec::new()
            };
            let layout = if plan.tail > 0 {
                Layout::Inline
            } else {
                Layout::Plain
            };
            let first = if plan.blocks == 0 { NULL_BLOCK } else { start };
            let size = plan.size as u64;
            let kind = FileType::Directory;
            let mut inode = self.inode(kind, layout, dir.attr, dir.xattrs, size, first);
            inode.nlink = dir.nlink();
            inode.ino = if n == 0 {
                1
            } else {
                inode.ino.saturating_add(u32_of(n))
            };
            let bytes = record(&inode, dir.xattrs, &tail);
            match tree.slots.get(n) {
                Some(Some(slot)) => area.fill(*slot, &bytes),
                _ => first_block = bytes,
            }
            for block in &mut blocks {
                block.resize(BLOCK, 0);
                data.push(std::mem::take(block));
            }
            start = start.saturating_add(u32_of(plan.blocks));
            // Large trees: what is ready goes out.
            if data.len() >= META_RUN / BLOCK {
                write_blocks(&mut self.out, &mut data)?;
            }
        }
        write_blocks(&mut self.out, &mut data)?;
        self.out.append(&area.take())?;
        let size = self.out.pos();
        let superblock = SuperBlock {
            root_nid: ROOT_SLOT,
            inodes: self.places.len() as u64 + dirs.len() as u64,
            blocks: self.out.block(),
            uuid,
            incompat: self.incompat,
        };
        let links: Vec<(u64, Vec<u8>)> = links
            .into_iter()
            .map(|(id, n)| {
                (
                    self.places.nid(id) * SLOT as u64 + NLINK_OFFSET as u64,
                    n.to_le_bytes().to_vec(),
                )
            })
            .collect();
        let last = (0, superblock.first_block(&first_block));
        let inodes = self.places.offsets();
        // The superblock last: until then the file is not an image.
        let inner = self.out.finish(links.into_iter().chain([last]))?;
        Ok(Finished {
            out: inner,
            size,
            inodes,
        })
    }

    /// Decides where each directory's blocks and inode go: all blocks first, then all inodes.
    fn place_dirs(&self, dirs: &[DirInput<'_>]) -> Result<DirLayout, WriterError> {
        let mut layout = DirLayout {
            area: MetaRun::new(),
            plans: Vec::with_capacity(dirs.len()),
            slots: Vec::with_capacity(dirs.len()),
            nids: Vec::with_capacity(dirs.len()),
        };
        for (n, dir) in dirs.iter().enumerate() {
            let xattrs = dir.xattrs.encoded_len();
            if n == 0 {
                if INODE_SIZE + xattrs > ROOT_ROOM {
                    let max = ROOT_ROOM - INODE_SIZE;
                    return Err(WriterError::RootXattrs { bytes: xattrs, max });
                }
                let room = dirs::tail_room(dir.xattrs, ROOT_ROOM);
                layout.plans.push(dirs::plan(&dir.all(n), room));
                layout.slots.push(None);
                continue;
            }
            let plan = dirs::plan(&dir.all(n), dirs::tail_room(dir.xattrs, BLOCK));
            layout
                .slots
                .push(Some(layout.area.reserve(INODE_SIZE + xattrs + plan.tail)));
            layout.plans.push(plan);
        }
        let blocks: usize = layout.plans.iter().map(|plan| plan.blocks).sum();
        let area = (u64::from(self.out.block()) + blocks as u64) * SLOTS_PER_BLOCK as u64;
        layout.nids = layout
            .slots
            .iter()
            .map(|slot| slot.map_or(u64::from(ROOT_SLOT), |slot| area + slot as u64))
            .collect();
        Ok(layout)
    }
}

/// Where the directories go.
#[derive(Debug)]
struct DirLayout {
    area: MetaRun,
    plans: Vec<DirPlan>,
    slots: Vec<Option<usize>>,
    nids: Vec<u64>,
}

fn write_blocks<W: Write + Seek>(
    out: &mut Output<W>,
    blocks: &mut Vec<Vec<u8>>,
) -> Result<(), WriterError> {
    blocks.drain(..).try_for_each(|block| out.append(&block))
}

/// Counts that the image's size limit keeps below 2^32.
fn u32_of(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
