//! What a layer may ask for.

/// What a layer may ask for. A layer beyond a limit is refused with [`LayerError::Limit`](super::LayerError::Limit).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the tar stream, and bytes of the image made of it.
    pub max_layer_bytes: u64,
    /// Entries of the tar, and files and directories in the image.
    pub max_entries: u64,
    /// Bytes of a path, and of the target of a link.
    pub max_path: usize,
    /// Directories above a file.
    pub max_depth: u32,
    /// Bytes of extended attributes of one file, names included.
    pub max_xattr_bytes: usize,
    /// Bytes that an entry's extended headers (PAX, GNU long names, sparse maps) may have.
    pub max_header_bytes: u64,
    /// Pieces of data of a sparse file.
    pub max_sparse_extents: usize,
    /// Bytes of names, link targets and attributes of directories, which stay in memory until
    /// the end of the layer, and of the indexes of sparse files.
    pub max_memory_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_layer_bytes: 1 << 40,
            max_entries: 2_000_000,
            // PATH_MAX with its final NUL.
            max_path: 4095,
            max_depth: 512,
            max_xattr_bytes: 64 << 10,
            max_header_bytes: 1 << 20,
            max_sparse_extents: 1 << 16,
            max_memory_bytes: 512 << 20,
        }
    }
}
