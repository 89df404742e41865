//! The on-disk structures of EROFS (kernel: `fs/erofs/erofs_fs.h`), encoded little-endian.
//!
//! Only what the writer emits: uncompressed layouts and 64-byte inodes. Pure functions.

/// Size of a block; also the page size of the guests this is made for.
pub const BLOCK_SIZE: u64 = 4096;
/// The same, for lengths in memory.
pub(super) const BLOCK: usize = 4096;
/// log2 of the block size.
pub(super) const BLOCK_BITS: u8 = 12;
/// Inodes are addressed in slots of 32 bytes.
pub(super) const SLOT: usize = 32;
/// Slots in a block.
pub(super) const SLOTS_PER_BLOCK: usize = BLOCK / SLOT;
/// Where the superblock starts.
pub(super) const SUPER_OFFSET: usize = 1024;
/// Size of the superblock without extension slots.
pub(super) const SUPER_SIZE: usize = 128;
/// Magic number of the superblock.
pub(super) const MAGIC: u32 = 0xE0F5_E1E2;
/// Size of an extended inode.
pub(super) const INODE_SIZE: usize = 64;
/// Where `i_nlink` is in an extended inode.
pub(super) const NLINK_OFFSET: usize = 44;
/// Size of one directory entry before its name.
pub(super) const DIRENT_SIZE: usize = 12;
/// "No block": a hole of a chunk-based file, or no full block in a tail-packed one.
pub(super) const NULL_BLOCK: u32 = u32::MAX;
/// The longest name of a directory entry, and of an extended attribute.
pub(super) const NAME_MAX: usize = 255;

/// The superblock carries a crc32c.
pub(super) const COMPAT_CHECKSUM: u32 = 1;
/// Inodes carry the modification time.
pub(super) const COMPAT_MTIME: u32 = 2;
/// The image holds chunk-based files.
pub(super) const INCOMPAT_CHUNKED: u32 = 4;

/// How an inode's data is stored (`i_format`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Whole blocks, contiguous.
    Plain,
    /// Whole blocks, contiguous, and the rest behind the inode.
    Inline,
    /// An array of block addresses behind the inode, one per chunk; holes allowed.
    Chunked,
}

impl Layout {
    fn bits(self) -> u16 {
        match self {
            Layout::Plain => 0,
            Layout::Inline => 2,
            Layout::Chunked => 4,
        }
    }
}

/// The type of a file: the top bits of its mode, and the type byte of its directory entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileType {
    /// Regular file.
    Regular,
    /// Directory.
    Directory,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
    /// Symbolic link.
    Symlink,
}

impl FileType {
    /// The value of `d_type` in a directory entry.
    pub(super) fn dirent(self) -> u8 {
        match self {
            FileType::Regular => 1,
            FileType::Directory => 2,
            FileType::CharDevice => 3,
            FileType::BlockDevice => 4,
            FileType::Fifo => 5,
            FileType::Socket => 6,
            FileType::Symlink => 7,
        }
    }

    /// The `S_IFMT` bits.
    pub(super) fn mode(self) -> u16 {
        match self {
            FileType::Regular => 0o100_000,
            FileType::Directory => 0o040_000,
            FileType::CharDevice => 0o020_000,
            FileType::BlockDevice => 0o060_000,
            FileType::Fifo => 0o010_000,
            FileType::Socket => 0o140_000,
            FileType::Symlink => 0o120_000,
        }
    }
}

/// The fields of an extended inode.
#[derive(Debug, Clone)]
pub(super) struct Inode {
    pub layout: Layout,
    /// `i_xattr_icount`, see [`super::xattr`].
    pub xattr_count: u16,
    /// Type and permissions.
    pub mode: u16,
    pub size: u64,
    /// First block, device number, or chunk format, by layout and type.
    pub union: u32,
    /// Number shown to 32-bit callers only.
    pub ino: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    pub mtime_nsec: u32,
    pub nlink: u32,
}

impl Inode {
    /// Appends the 64 bytes of the inode.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        // Bit 0: extended inode. Bits 1..4: layout.
        put16(out, 1 | (self.layout.bits() << 1));
        put16(out, self.xattr_count);
        put16(out, self.mode);
        put16(out, 0);
        put64(out, self.size);
        put32(out, self.union);
        put32(out, self.ino);
        put32(out, self.uid);
        put32(out, self.gid);
        // The kernel reads the field as a signed time.
        out.extend_from_slice(&self.mtime.to_le_bytes());
        put32(out, self.mtime_nsec);
        put32(out, self.nlink);
        out.extend_from_slice(&[0; 16]);
    }
}

/// The fields of the superblock that differ between images.
#[derive(Debug, Clone)]
pub(super) struct SuperBlock {
    pub root_nid: u16,
    pub inodes: u64,
    pub blocks: u32,
    pub uuid: [u8; 16],
    pub incompat: u32,
}

impl SuperBlock {
    /// The first block of the image: superblock, then `behind` (the root inode), with the
    /// checksum over everything from the superblock to the end of the block.
    pub(super) fn first_block(&self, behind: &[u8]) -> Vec<u8> {
        let zero = self.encode(0, behind);
        let sum = crc32c(zero.get(SUPER_OFFSET..).unwrap_or_default());
        self.encode(sum, behind)
    }

    fn encode(&self, checksum: u32, behind: &[u8]) -> Vec<u8> {
        let mut out = vec![0; SUPER_OFFSET];
        put32(&mut out, MAGIC);
        put32(&mut out, checksum);
        put32(&mut out, COMPAT_CHECKSUM | COMPAT_MTIME);
        out.extend_from_slice(&[BLOCK_BITS, 0]);
        put16(&mut out, self.root_nid);
        put64(&mut out, self.inodes);
        // No build time: an image depends on its content only.
        put64(&mut out, 0);
        put32(&mut out, 0);
        put32(&mut out, self.blocks);
        // meta_blkaddr, xattr_blkaddr: inodes are addressed from block 0, no shared attributes.
        put32(&mut out, 0);
        put32(&mut out, 0);
        out.extend_from_slice(&self.uuid);
        out.extend_from_slice(&[0; 16]);
        put32(&mut out, self.incompat);
        out.resize(SUPER_OFFSET + SUPER_SIZE, 0);
        out.extend_from_slice(behind);
        out.resize(BLOCK, 0);
        out
    }
}

/// Linux's 32-bit encoding of a device number: minor bits 0..8 and 20..32, major bits 8..20.
/// `None` when a number does not fit (12 bits of major, 20 bits of minor).
pub(super) fn device(major: u32, minor: u32) -> Option<u32> {
    if major > 0xfff || minor > 0xf_ffff {
        return None;
    }
    Some((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

/// crc32c as the kernel's `crc32c(~0, ..)` gives it: without the final inversion.
pub(super) fn crc32c(data: &[u8]) -> u32 {
    data.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            if crc & 1 == 1 {
                (crc >> 1) ^ 0x82F6_3B78
            } else {
                crc >> 1
            }
        })
    })
}

pub(super) fn put16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(super) fn put32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(super) fn put64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_of_the_check_string() {
        // The check value of CRC-32C (RFC 3720 B.4 uses the same polynomial) is E3069283 after
        // the final inversion.
        assert_eq!(!crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn device_numbers() {
        assert_eq!(device(0, 0), Some(0));
        assert_eq!(device(1, 3), Some(0x103));
        assert_eq!(device(0xfff, 0xf_ffff), Some(u32::MAX));
        assert_eq!(device(0x1000, 0), None);
        assert_eq!(device(0, 0x10_0000), None);
    }

    #[test]
    fn sizes() {
        let mut out = Vec::new();
        Inode {
            layout: Layout::Plain,
            xattr_count: 0,
            mode: 0,
            size: 0,
            union: 0,
            ino: 0,
            uid: 0,
            gid: 0,
            mtime: 0,
            mtime_nsec: 0,
            nlink: 0x0403_0201,
        }
        .encode(&mut out);
        assert_eq!(out.len(), INODE_SIZE);
        assert_eq!(&out[NLINK_OFFSET..NLINK_OFFSET + 4], &[1, 2, 3, 4]);
        let sb = SuperBlock {
            root_nid: 36,
            inodes: 1,
            blocks: 1,
            uuid: [7; 16],
            incompat: 0,
        };
        assert_eq!(sb.first_block(&[]).len(), BLOCK);
    }
}
