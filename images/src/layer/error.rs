//! What can be wrong with a layer.

use std::io;

use crate::erofs::WriterError;

/// Why a layer could not be converted.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The source of the stream failed; `source` is what it said.
    #[error("reading the layer's tar stream after {offset} bytes: {source}")]
    Input {
        /// Bytes read before.
        offset: u64,
        /// The reader's own error.
        source: io::Error,
    },
    /// The stream ended too early.
    #[error(
        "the layer's tar stream ends after {offset} bytes in the middle of {what}: \
         it was cut off, pull it again"
    )]
    Truncated {
        /// Bytes read before.
        offset: u64,
        /// What was being read.
        what: &'static str,
    },
    /// A header that is not tar.
    #[error("bad tar header in the 512 bytes before byte {offset} of the layer: {problem}")]
    Format {
        /// Bytes read so far.
        offset: u64,
        /// What is wrong.
        problem: FormatProblem,
    },
    /// An entry that cannot be in a layer.
    #[error("entry \"{path}\" of the layer: {problem}")]
    Entry {
        /// Its path, escaped and cut.
        path: String,
        /// What is wrong.
        problem: EntryProblem,
    },
    /// The layer asks for more than is allowed.
    #[error("the layer has more than {limit} {what}, which is the limit for one layer")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much is allowed.
        limit: u64,
    },
    /// The image could not be written.
    #[error("making the layer's image: {0}")]
    Image(#[from] WriterError),
    /// A step on the image file failed.
    #[error("{doing} {path}: {source}")]
    File {
        /// What was attempted.
        doing: &'static str,
        /// On what.
        path: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl LayerError {
    /// Whether the disk is full, so that the caller can say so.
    pub fn is_disk_full(&self) -> bool {
        let kind = match self {
            LayerError::Image(WriterError::Io(source)) | LayerError::File { source, .. } => {
                source.kind()
            }
            _ => return false,
        };
        matches!(
            kind,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }

    /// Whether the bytes of the layer are at fault, and not the node.
    pub fn is_of_content(&self) -> bool {
        match self {
            Self::Input { .. }
            | Self::Truncated { .. }
            | Self::Format { .. }
            | Self::Entry { .. }
            | Self::Limit { .. } => true,
            Self::Image(error) => !matches!(error, WriterError::Io(_)),
            Self::File { .. } => false,
        }
    }

    /// An entry's problem, with its path made printable.
    pub(super) fn entry(path: &[u8], problem: EntryProblem) -> Self {
        Self::Entry {
            path: printable(path),
            problem,
        }
    }
}

/// What is wrong with the bytes of a tar header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatProblem {
    /// The checksum does not match.
    #[error("the checksum is wrong, this is not a tar stream")]
    Checksum,
    /// A number field holds no number.
    #[error("the field {0} is not a number that fits")]
    Number(&'static str),
    /// A PAX record that cannot be read.
    #[error("an extended (PAX) header has a malformed record: {0}")]
    Pax(&'static str),
    /// A sparse map that cannot be.
    #[error("the map of a sparse file is impossible: {0}")]
    Sparse(&'static str),
    /// A block of zeros, and then no second one.
    #[error("one block of zeros stands alone, two end an archive")]
    LoneZero,
}

/// What is wrong with an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryProblem {
    /// A NUL byte in a path or target.
    #[error("the path or the link's target has a NUL byte")]
    Nul,
    /// A component over 255 bytes.
    #[error("a component of the path is longer than 255 bytes")]
    NameTooLong,
    /// A path or target over the limit.
    #[error("the path or the link's target is longer than {0} bytes")]
    PathTooLong(usize),
    /// Too many directories.
    #[error("the path has more than {0} directories")]
    TooDeep(u32),
    /// Symbolic links that lead in circles.
    #[error("following the symbolic links in the path does not end")]
    Loop,
    /// A parent is a file.
    #[error("a component of the path is not a directory")]
    NotADirectory,
    /// A hard link to nothing in this layer.
    #[error(
        "hard link to \"{0}\", which is not in this layer before the link; \
         a link into another layer cannot be stored"
    )]
    LinkTarget(String),
    /// A hard link to a directory.
    #[error("hard link to \"{0}\", which is a directory")]
    LinkToDirectory(String),
    /// A symbolic link to nothing.
    #[error("symbolic link without a target")]
    EmptyTarget,
    /// A whiteout of no file.
    #[error("the whiteout names no file")]
    Whiteout,
    /// Extended attributes over the limit.
    #[error("the extended attributes have more than {0} bytes")]
    Xattrs(usize),
    /// A type of entry that no layer has.
    #[error("entries of type {:?} are not supported", char::from(*.0))]
    Type(u8),
}

/// A path for people: escaped, and cut to a length that fits a message.
pub(super) fn printable(path: &[u8]) -> String {
    const MAX: usize = 200;
    match path.get(..MAX) {
        Some(cut) if path.len() > MAX => format!("{}...", cut.escape_ascii()),
        _ => path.escape_ascii().to_string(),
    }
}
