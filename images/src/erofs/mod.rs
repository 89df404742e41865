//! EROFS images, as a library that knows nothing of tar or OCI.
//!
//! [`Writer`] makes one uncompressed image in one pass: file data and inodes are appended while
//! they arrive, directories and the superblock come last, and nothing but names and directories is
//! held in memory. The on-disk format is in `format`; what goes into an image, and what of it is
//! allowed, is decided by `images::layer`.
//!
//! The layout of an image, in 4 KiB blocks:
//!
//! ```text
//! | superblock, root inode | data | inodes | data | inodes | ... | directory data | directory inodes |
//! ```
//!
//! `meta_blkaddr` is 0, so that an inode may live in any block; the root inode sits right behind
//! the superblock because its number has only 16 bits there. Inodes are collected into runs of
//! about 1 MiB, together with the tails of files (the part behind the last full block), so that
//! walking a tree reads few blocks, and memory stays bounded however many files there are.

mod dirs;
mod finish;
mod format;
mod inode;
mod meta;
mod output;
#[cfg(any(test, fuzzing))]
pub mod read;
#[cfg(test)]
mod tests;
mod writer;
mod xattr;

pub use dirs::{Child, DirInput};
pub use finish::Finished;
pub use format::{BLOCK_SIZE, FileType};
pub use inode::{Attr, InodeId, WriterError};
pub use writer::{FileData, Node, Piece, SparseData, Writer};
pub use xattr::{XattrName, Xattrs};
