//! The writer of one image: inodes and data as they arrive. The end of an image is in `finish`.

use std::io::{Seek, Write};

use super::dirs;
use super::format::{
    BLOCK, BLOCK_SIZE, FileType, INCOMPAT_CHUNKED, INODE_SIZE, Inode, Layout, NULL_BLOCK, SLOT,
    SLOTS_PER_BLOCK, device, put32,
};
use super::inode::{Attr, InodeId, WriterError};
use super::meta::MetaRun;
use super::output::Output;
use super::xattr::Xattrs;

/// A run of metadata is appended when it has this many bytes.
pub(super) const META_RUN: usize = 1 << 20;
/// A sparse file gets chunks so large that it has at most this many.
const MAX_CHUNKS: u64 = 1 << 18;
/// The largest chunk the format knows, in blocks (as a power of two).
const MAX_CHUNK_BITS: u32 = 31;

/// An inode without blocks of data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node<'a> {
    /// A symbolic link and its target.
    Symlink(&'a [u8]),
    /// A character device; 0:0 is a whiteout of overlayfs.
    CharDevice(u32, u32),
    /// A block device.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
}

/// Where a piece of a file's data is in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// At a byte of the image.
    At {
        /// The byte.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// Behind an inode, whose own place is known at the end of the image.
    Behind {
        /// The inode.
        inode: InodeId,
        /// Bytes from the beginning of its record.
        offset: u32,
        /// How many bytes.
        len: u32,
    },
}

/// A regular file whose data is being written.
#[derive(Debug)]
pub struct FileData {
    size: u64,
    written: u64,
    start: u32,
    tail: Vec<u8>,
}

/// A sparse file whose data is being written.
#[derive(Debug)]
pub struct SparseData {
    size: u64,
    /// log2 of the blocks in a chunk.
    chunk_bits: u32,
    index: Vec<u32>,
    /// The end of the data written so far.
    pos: u64,
    /// The chunk that `pos` is in has been started.
    open: bool,
    /// Where the data is, in its order.
    pieces: Vec<Piece>,
}

impl SparseData {
    /// Bytes of the index that the file will have in the image, whatever its data.
    pub fn index_bytes(&self) -> u64 {
        self.index.len() as u64 * 4
    }
}

/// Writes one image. See the module for the layout.
#[derive(Debug)]
pub struct Writer<W> {
    pub(super) out: Output<W>,
    run: MetaRun,
    pub(super) places: Places,
    pub(super) incompat: u32,
}

/// Where the inodes are.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Of each inode: the number of its run, and its slot in it.
    slots: Vec<(u32, u32)>,
    /// Of each run that was appended: its first slot in the image.
    run_starts: Vec<u64>,
}

impl<W: Write + Seek> Writer<W> {
    /// Starts an image of at most `limit` bytes at the beginning of an empty file.
    ///
    /// # Errors
    /// When writing fails.
    pub fn new(out: W, limit: u64) -> Result<Self, WriterError> {
        let mut out = Output::new(out, limit);
        // Room for the first block, which is known last.
        out.append(&[0; BLOCK])?;
        Ok(Self {
            out,
            run: MetaRun::new(),
            places: Places::default(),
            incompat: 0,
        })
    }

    /// Starts a regular file of `size` bytes. Its data must follow before any other inode.
    pub fn begin_file(&mut self, size: u64) -> FileData {
        FileData {
            size,
            written: 0,
            start: self.out.block(),
            tail: Vec::new(),
        }
    }

    /// Appends data to a file.
    ///
    /// # Errors
    /// When it is more than announced, or writing fails.
    pub fn file_data(&mut self, file: &mut FileData, data: &[u8]) -> Result<(), WriterError> {
        let end = file.written.saturating_add(data.len() as u64);
        if end > file.size {
            return Err(WriterError::Data {
                at: end,
                size: file.size,
            });
        }
        // The bytes behind the last full block are kept: they may go behind the inode.
        let whole = file.size - file.size % BLOCK_SIZE;
        let split = usize::try_from(whole.saturating_sub(file.written)).unwrap_or(usize::MAX);
        let (blocks, tail) = data.split_at(split.min(data.len()));
        self.out.append(blocks)?;
        file.tail.extend_from_slice(tail);
        file.written = end;
        Ok(())
    }

    /// Ends a file whose data is complete, and says where that is.
    ///
    /// # Errors
    /// When data is missing, or writing fails.
    pub fn end_file(
        &mut self,
        file: FileData,
        attr: &Attr,
        xattrs: &Xattrs,
    ) -> Result<(InodeId, Vec<Piece>), WriterError> {
        if file.written != file.size {
            return Err(WriterError::Data {
                at: file.written,
                size: file.size,
            });
        }
        let mut pieces = Vec::new();
        let offset = u64::from(file.start) * BLOCK_SIZE;
        note(&mut pieces, offset, file.size - file.tail.len() as u64);
        let contiguous = self.out.pos();
        let kind = FileType::Regular;
        let inode = self.add_flat(kind, attr, xattrs, file.size, file.start, &file.tail)?;
        if is_inline(&file.tail, xattrs) {
            pieces.push(Piece::Behind {
                inode,
                offset: u32::try_from(INODE_SIZE + xattrs.encoded_len()).unwrap_or(u32::MAX),
                len: u32::try_from(file.tail.len()).unwrap_or(u32::MAX),
            });
        } else {
            note(&mut pieces, contiguous, file.tail.len() as u64);
        }
        Ok((inode, pieces))
    }

    /// Adds a link, device, pipe or socket.
    ///
    /// # Errors
    /// When a device number is out of range, or writing fails.
    pub fn add_node(
        &mut self,
        node: Node<'_>,
        attr: &Attr,
        xattrs: &Xattrs,
    ) -> Result<InodeId, WriterError> {
        let (kind, union) = match node {
            Node::Symlink(target) => {
                let start = self.out.block();
                // A target of a block or more has its first blocks in the data area.
                let split = target.len() - target.len() % BLOCK;
                let (blocks, tail) = target.split_at(split);
                self.out.append(blocks)?;
                let size = target.len() as u64;
                return self.add_flat(FileType::Symlink, attr, xattrs, size, start, tail);
            }
            Node::CharDevice(major, minor) => (
                FileType::CharDevice,
                device(major, minor).ok_or(WriterError::Device { major, minor })?,
            ),
            Node::BlockDevice(major, minor) => (
                FileType::BlockDevice,
                device(major, minor).ok_or(WriterError::Device { major, minor })?,
            ),
            Node::Fifo => (FileType::Fifo, 0),
            Node::Socket => (FileType::Socket, 0),
        };
        let inode = self.inode(kind, Layout::Plain, attr, xattrs, 0, union);
        self.add_record(&inode, xattrs, &[])
    }

    /// Starts a sparse file of `size` bytes, all of it a hole so far.
    ///
    /// # Errors
    /// When the size is beyond what the format can map.
    pub fn begin_sparse(&mut self, size: u64) -> Result<SparseData, WriterError> {
        let blocks = size.div_ceil(BLOCK_SIZE);
        let chunk_bits = (0..=MAX_CHUNK_BITS)
            .find(|bits| blocks.div_ceil(1 << bits) <= MAX_CHUNKS)
            .ok_or(WriterError::SparseSize { size })?;
        let chunks = usize::try_from(blocks.div_ceil(1 << chunk_bits)).unwrap_or(usize::MAX);
        Ok(SparseData {
            size,
            chunk_bits,
            index: vec![NULL_BLOCK; chunks],
            pos: 0,
            open: false,
            pieces: Vec::new(),
        })
    }

    /// Writes data into a sparse file, at or behind the end of the data before.
    ///
    /// # Errors
    /// When it is out of order or behind the end, or writing fails.
    pub fn sparse_data(
        &mut self,
        file: &mut SparseData,
        mut at: u64,
        mut data: &[u8],
    ) -> Result<(), WriterError> {
        let end = at
            .checked_add(data.len() as u64)
            .filter(|end| *end <= file.size);
        if end.is_none() || at < file.pos {
            return Err(WriterError::Data {
                at,
                size: file.size,
            });
        }
        let chunk = BLOCK_SIZE << file.chunk_bits;
        while !data.is_empty() {
            let start = at - at % chunk;
            if !file.open || file.pos < start {
                self.close_chunk(file)?;
                let slot = usize::try_from(at / chunk)
                    .ok()
                    .and_then(|i| file.index.get_mut(i));
                let slot = slot.ok_or(WriterError::Data {
                    at,
                    size: file.size,
                })?;
                *slot = self.out.block();
                file.open = true;
                file.pos = start;
            }
            self.out.skip(at - file.pos)?;
            let room = usize::try_from(start + chunk - at).unwrap_or(usize::MAX);
            let (now, later) = data.split_at(room.min(data.len()));
            note(&mut file.pieces, self.out.pos(), now.len() as u64);
            self.out.append(now)?;
            at += now.len() as u64;
            file.pos = at;
            if at == start + chunk {
                file.open = false;
            }
            data = later;
        }
        Ok(())
    }

    /// Ends a sparse file, and says where its data is.
    ///
    /// # Errors
    /// When writing fails.
    pub fn end_sparse(
        &mut self,
        mut file: SparseData,
        attr: &Attr,
        xattrs: &Xattrs,
    ) -> Result<(InodeId, Vec<Piece>), WriterError> {
        self.close_chunk(&mut file)?;
        let pieces = std::mem::take(&mut file.pieces);
        if file.index.is_empty() {
            let inode = self.add_flat(FileType::Regular, attr, xattrs, 0, 0, &[])?;
            return Ok((inode, pieces));
        }
        self.incompat |= INCOMPAT_CHUNKED;
        let mut index = Vec::with_capacity(file.index.len() * 4);
        for block in &file.index {
            put32(&mut index, *block);
        }
        let kind = FileType::Regular;
        let inode = self.inode(
            kind,
            Layout::Chunked,
            attr,
            xattrs,
            file.size,
            file.chunk_bits,
        );
        Ok((self.add_record(&inode, xattrs, &index)?, pieces))
    }

    /// Fills the chunk being written up to its end, or to the end of the file's last block.
    fn close_chunk(&mut self, file: &mut SparseData) -> Result<(), WriterError> {
        if file.open {
            let chunk = BLOCK_SIZE << file.chunk_bits;
            let end = (file.pos - file.pos % chunk).saturating_add(chunk);
            let end = end.min(file.size.next_multiple_of(BLOCK_SIZE));
            self.out.skip(end.saturating_sub(file.pos))?;
            file.open = false;
        }
        Ok(())
    }

    /// Adds an inode whose full blocks are at `start`: the rest goes behind the inode when the
    /// record still fits a block, else into a block of its own.
    fn add_flat(
        &mut self,
        kind: FileType,
        attr: &Attr,
        xattrs: &Xattrs,
        size: u64,
        start: u32,
        tail: &[u8],
    ) -> Result<InodeId, WriterError> {
        if is_inline(tail, xattrs) {
            let first = if size < BLOCK_SIZE { NULL_BLOCK } else { start };
            let inode = self.inode(kind, Layout::Inline, attr, xattrs, size, first);
            return self.add_record(&inode, xattrs, tail);
        }
        self.out.append(tail)?;
        self.out.align()?;
        let inode = self.inode(kind, Layout::Plain, attr, xattrs, size, start);
        self.add_record(&inode, xattrs, &[])
    }

    pub(super) fn inode(
        &self,
        kind: FileType,
        layout: Layout,
        attr: &Attr,
        xattrs: &Xattrs,
        size: u64,
        union: u32,
    ) -> Inode {
        Inode {
            layout,
            xattr_count: xattrs.count(),
            mode: kind.mode() | (attr.mode & 0o7777),
            size,
            union,
            // The root is number 1.
            ino: u32::try_from(self.places.len())
                .unwrap_or(u32::MAX)
                .saturating_add(2),
            uid: attr.uid,
            gid: attr.gid,
            mtime: attr.mtime,
            mtime_nsec: attr.mtime_nsec,
            nlink: 1,
        }
    }

    fn add_record(
        &mut self,
        inode: &Inode,
        xattrs: &Xattrs,
        behind: &[u8],
    ) -> Result<InodeId, WriterError> {
        if self.run.len() >= META_RUN {
            self.flush_run()?;
        }
        let bytes = record(inode, xattrs, behind);
        let slot = self.run.reserve(bytes.len());
        self.run.fill(slot, &bytes);
        let id = u32::try_from(self.places.slots.len()).map_err(|_| WriterError::TooManyInodes)?;
        let run =
            u32::try_from(self.places.run_starts.len()).map_err(|_| WriterError::TooManyInodes)?;
        let slot = u32::try_from(slot).map_err(|_| WriterError::TooManyInodes)?;
        self.places.slots.push((run, slot));
        Ok(InodeId(id))
    }

    pub(super) fn flush_run(&mut self) -> Result<(), WriterError> {
        self.places
            .run_starts
            .push(u64::from(self.out.block()) * SLOTS_PER_BLOCK as u64);
        let bytes = self.run.take();
        self.out.append(&bytes)
    }
}

/// Notes data that goes to a byte of the image, with what is right before it if it follows that.
fn note(pieces: &mut Vec<Piece>, at: u64, more: u64) {
    if let Some(Piece::At { offset, len }) = pieces.last_mut()
        && offset.checked_add(*len) == Some(at)
    {
        *len += more;
    } else if more > 0 {
        pieces.push(Piece::At {
            offset: at,
            len: more,
        });
    }
}

/// Whether the bytes behind a file's last full block go behind its inode.
fn is_inline(tail: &[u8], xattrs: &Xattrs) -> bool {
    !tail.is_empty() && tail.len() <= dirs::tail_room(xattrs, BLOCK)
}

impl Places {
    /// How many inodes there are.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Where each inode's record is: bytes from the beginning of the image. Their runs must have
    /// been appended.
    pub(super) fn offsets(&self) -> Vec<u64> {
        let numbers = (0..self.slots.len()).filter_map(|n| u32::try_from(n).ok());
        numbers
            .map(|n| self.nid(InodeId(n)) * SLOT as u64)
            .collect()
    }

    /// The number of an inode in the image; its run must have been appended.
    pub(super) fn nid(&self, id: InodeId) -> u64 {
        let place = usize::try_from(id.0).ok().and_then(|i| self.slots.get(i));
        let (run, slot) = place.copied().unwrap_or_default();
        let start = usize::try_from(run)
            .ok()
            .and_then(|run| self.run_starts.get(run));
        start.copied().unwrap_or_default() + u64::from(slot)
    }
}

pub(super) fn record(inode: &Inode, xattrs: &Xattrs, behind: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(INODE_SIZE + xattrs.encoded_len() + behind.len());
    inode.encode(&mut out);
    xattrs.encode(&mut out);
    out.extend_from_slice(behind);
    out
}
