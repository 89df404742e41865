//! Which file has which bytes of a disk. Nothing is read or written here, and the arithmetic
//! ([`Layout`]) is pure: offsets are the guest's, lengths the daemon's.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;

use bulkhead_contract::vmm::{MAX_PARTS, PART_ALIGNMENT};

use super::job::Operation;
use super::request::SECTOR;

/// Why files cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum BackingError {
    /// The size of one could not be found out.
    #[error("finding the size of its file {part}")]
    Size {
        /// Which, from 0.
        part: usize,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Less than one sector, or neither file nor block device.
    #[error("its descriptor must be a regular file or block device of at least 512 bytes")]
    NotADisk,
    /// None, or too many.
    #[error("it has {0} parts; a disk has 1 to {MAX_PARTS}")]
    Count(usize),
    /// A part that is not its file rounded up.
    #[error(
        "part {part} is to have {bytes} bytes, but its file, of {held} bytes, rounded up to \
         {PART_ALIGNMENT} has another length"
    )]
    Length {
        /// Which, from 0.
        part: usize,
        /// What was asked for.
        bytes: u64,
        /// What the file has.
        held: u64,
    },
    /// More bytes than can be addressed.
    #[error("its parts are too long together")]
    TooLong,
}

/// A file of a disk.
#[derive(Debug)]
pub struct Part {
    /// The file or block device, open for reading, and for writing unless the disk is read-only.
    pub file: File,
    /// How many bytes of the disk it is; `None`: what it has, in whole sectors.
    pub bytes: Option<u64>,
}

impl From<File> for Part {
    fn from(file: File) -> Self {
        Part { file, bytes: None }
    }
}

/// Some bytes of a disk that stand one after the other in one file, with zeroes behind them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    /// The first byte on the disk that is not its any more.
    end: u64,
    /// How many bytes the file has.
    held: u64,
}

/// Where a byte of a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In a file.
    File {
        /// Which, from 0.
        part: usize,
        /// Where in it.
        offset: u64,
        /// How many bytes follow there that are the disk's, this one included.
        len: u64,
    },
    /// Behind the end of a file, where the disk has zeroes.
    Zeroes {
        /// How many, this one included.
        len: u64,
    },
}

/// Files one after the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    /// In order, none of them empty.
    extents: Vec<Extent>,
}

impl Layout {
    /// Adds a part of `bytes` bytes, of which its file has the first `held`; the others are zeroes.
    ///
    /// # Errors
    /// [`BackingError::TooLong`], or [`BackingError::Length`] if the part has no bytes, or fewer than
    /// its file.
    pub fn push(&mut self, bytes: u64, held: u64) -> Result<(), BackingError> {
        let part = self.extents.len();
        if bytes == 0 || held > bytes {
            return Err(BackingError::Length { part, bytes, held });
        }
        let end = self.len().checked_add(bytes);
        // System calls take signed offsets.
        let end = end.filter(|end| i64::try_from(*end).is_ok());
        let end = end.ok_or(BackingError::TooLong)?;
        self.extents.push(Extent { end, held });
        Ok(())
    }

    /// Bytes of the disk.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.extents.last().map_or(0, |last| last.end)
    }

    /// Whether there is not a byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Where the byte at `offset` of the disk is; `None` beyond its end.
    #[must_use]
    pub fn locate(&self, offset: u64) -> Option<Place> {
        let part = self.extents.partition_point(|extent| extent.end <= offset);
        let extent = self.extents.get(part)?;
        let before = part.checked_sub(1).and_then(|part| self.extents.get(part));
        let start = before.map_or(0, |before| before.end);
        let inside = offset.checked_sub(start)?;
        match extent.held.checked_sub(inside).filter(|len| *len > 0) {
            Some(len) => Some(Place::File {
                part,
                offset: inside,
                len,
            }),
            None => Some(Place::Zeroes {
                len: extent.end.checked_sub(offset)?,
            }),
        }
    }
}

/// The files of a disk.
#[derive(Debug)]
pub struct Backing {
    layout: Layout,
    first: File,
    more: Vec<File>,
    regular: bool,
}

impl Backing {
    /// Takes the files, and looks at their sizes.
    ///
    /// # Errors
    /// See [`BackingError`].
    pub fn new(parts: Vec<Part>) -> Result<Self, BackingError> {
        let count = parts.len();
        if count > MAX_PARTS {
            return Err(BackingError::Count(count));
        }
        let mut layout = Layout::default();
        let mut files = Vec::with_capacity(count);
        let mut regular = true;
        for (part, Part { file, bytes }) in parts.into_iter().enumerate() {
            let size = |source| BackingError::Size { part, source };
            let kind = file.metadata().map_err(size)?.file_type();
            if !kind.is_file() && !kind.is_block_device() {
                return Err(BackingError::NotADisk);
            }
            regular &= kind.is_file();
            // Works for block devices too, where the metadata's length is 0.
            let held = (&file).seek(SeekFrom::End(0)).map_err(size)?;
            let (bytes, held) = match bytes {
                None => {
                    let whole = held / SECTOR * SECTOR;
                    (whole, whole)
                }
                Some(bytes) if held.checked_next_multiple_of(PART_ALIGNMENT) == Some(bytes) => {
                    (bytes, held)
                }
                Some(bytes) => return Err(BackingError::Length { part, bytes, held }),
            };
            if bytes == 0 {
                return Err(BackingError::NotADisk);
            }
            layout.push(bytes, held)?;
            files.push(file);
        }
        let mut files = files.into_iter();
        let first = files.next().ok_or(BackingError::Count(0))?;
        Ok(Backing {
            layout,
            first,
            more: files.collect(),
            regular,
        })
    }

    /// Sectors of the disk.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.layout.len() / SECTOR
    }

    /// The file, if the disk is one regular file.
    pub(super) fn only_file(&self) -> Option<BorrowedFd<'_>> {
        (self.more.is_empty() && self.regular).then(|| self.first.as_fd())
    }

    /// Whether the disk is more than one file.
    pub(super) fn is_joined(&self) -> bool {
        !self.more.is_empty()
    }

    /// Where a byte of the disk is; `None` beyond its end.
    pub(super) fn locate(&self, offset: u64) -> Option<Place> {
        self.layout.locate(offset)
    }

    /// The file that an operation is for, and where in it. Only reads know more files than the first:
    /// a disk of several is read-only.
    pub(super) fn file_of(&self, operation: Operation) -> (&File, u64) {
        match operation {
            Operation::Read { offset } => match self.layout.locate(offset) {
                Some(Place::File { part, offset, .. }) => {
                    let more = part.checked_sub(1).and_then(|part| self.more.get(part));
                    (more.unwrap_or(&self.first), offset)
                }
                // Not asked for: such bytes are in no file.
                Some(Place::Zeroes { .. }) | None => (&self.first, u64::MAX),
            },
            Operation::Write { offset, .. } | Operation::Allocate { offset, .. } => {
                (&self.first, offset)
            }
            Operation::DataSync => (&self.first, 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn layout(parts: &[(u64, u64)]) -> Layout {
        let mut layout = Layout::default();
        for (bytes, held) in parts {
            layout.push(*bytes, *held).unwrap();
        }
        layout
    }

    #[test]
    fn bytes_are_where_their_part_is() {
        let two = layout(&[(4096, 4096), (8192, 5000)]);
        let file = |part, offset, len| Some(Place::File { part, offset, len });
        assert_eq!(two.len(), 12288);
        assert_eq!(two.locate(0), file(0, 0, 4096));
        assert_eq!(two.locate(4095), file(0, 4095, 1));
        assert_eq!(two.locate(4096), file(1, 0, 5000));
        assert_eq!(two.locate(9095), file(1, 4999, 1));
        assert_eq!(two.locate(9096), Some(Place::Zeroes { len: 3192 }));
        assert_eq!(two.locate(12287), Some(Place::Zeroes { len: 1 }));
        assert_eq!(two.locate(12288), None);
        assert_eq!(two.locate(u64::MAX), None);
        assert_eq!(Layout::default().locate(0), None);
    }

    #[test]
    fn lengths_that_cannot_be_are_refused() {
        let mut one = layout(&[(4096, 4096)]);
        assert!(matches!(one.push(0, 0), Err(BackingError::Length { .. })));
        assert!(matches!(
            one.push(512, 513),
            Err(BackingError::Length { .. })
        ));
        let most = u64::try_from(i64::MAX).unwrap();
        for much in [u64::MAX, u64::MAX - 4095, most, most - 4095] {
            assert!(matches!(one.push(much, 0), Err(BackingError::TooLong)));
        }
        one.push(most - 4096, 0).unwrap();
        assert_eq!(one.len(), most);
    }

    proptest! {
        /// What a walk in pieces finds is what the files have, one after the other.
        #[test]
        fn a_walk_finds_every_byte_once_and_in_order(
            parts in proptest::collection::vec((1u64..40, 0u64..40), 1..20),
            from in 0u64..900,
        ) {
            let parts: Vec<(u64, u64)> =
                parts.iter().map(|(bytes, held)| (*bytes, *held.min(bytes))).collect();
            let layout = layout(&parts);
            let mut bytes = Vec::new();
            for (part, (length, held)) in parts.iter().enumerate() {
                bytes.extend((0..*length).map(|at| (at < *held).then_some((part, at))));
            }
            prop_assert_eq!(layout.len(), bytes.len() as u64);
            let mut offset = from;
            while let Some(place) = layout.locate(offset) {
                let len = match place {
                    Place::File { len, .. } | Place::Zeroes { len } => len,
                };
                prop_assert!(len > 0 && offset + len <= layout.len());
                for step in 0..len {
                    let want = match place {
                        Place::File { part, offset, .. } => Some((part, offset + step)),
                        Place::Zeroes { .. } => None,
                    };
                    prop_assert_eq!(bytes[usize::try_from(offset + step).unwrap()], want);
                }
                offset += len;
            }
            prop_assert_eq!(offset, layout.len().max(from));
        }
    }
}
