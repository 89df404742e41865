//! What every part of the writer speaks of: an inode's number, its attributes, and the writer's
//! errors.

use std::io;

/// Why an image could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriterError {
    /// Writing failed; a full disk is `ErrorKind::StorageFull`.
    #[error("writing the image: {0}")]
    Io(#[from] io::Error),
    /// The image would be longer than allowed.
    #[error("the image would be larger than {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// A device number that Linux has no encoding for.
    #[error("device {major}:{minor} is out of range (major below 4096, minor below 1048576)")]
    Device {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// The attributes of the root directory do not fit beside the superblock.
    #[error("extended attributes of {bytes} bytes on the root directory, {max} fit")]
    RootXattrs {
        /// Their size.
        bytes: usize,
        /// What fits.
        max: usize,
    },
    /// A sparse file that the format cannot map.
    #[error("a sparse file of {size} bytes is larger than the format can map")]
    SparseSize {
        /// Its size.
        size: u64,
    },
    /// The caller gave more or less data than it announced, or out of order.
    #[error("data at {at} does not fit a file of {size} bytes")]
    Data {
        /// Where the data would go.
        at: u64,
        /// The size announced.
        size: u64,
    },
    /// More than 2^32 inodes.
    #[error("too many files for one image")]
    TooManyInodes,
}

/// Owner, permissions and time of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attr {
    /// Permission bits (07777); the type comes from elsewhere.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: i64,
    /// Nanoseconds, below 10^9.
    pub mtime_nsec: u32,
}

/// An inode of the image being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct InodeId(pub(super) u32);

impl InodeId {
    /// How many inodes were added before it.
    pub fn index(self) -> u32 {
        self.0
    }
}
