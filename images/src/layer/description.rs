//! What a layer's file says of itself, behind its image: enough to use it when the records are
//! lost. The kernel reads as many blocks as the superblock says and never sees it.
//!
//! The image, a multiple of 4,096 bytes; the recipe of its tar; JSON; zeros; and in the last 64 bytes of the file, which
//! is a multiple of 4,096 bytes, too: a mark, where the JSON begins and how long it is (64 bits
//! each, little-endian), and its SHA-256.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::recipe::Recipe;
use crate::digest::Digest;

const MARK: [u8; 16] = *b"bulkhead layer 1";
const TRAILER: usize = 64;
const BLOCK: u64 = 4096;
/// Largest description read: paths of at most 4 MiB, each byte as a number.
const LARGEST: u64 = 32 << 20;

/// What a layer is, beyond what its image tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The digest of the layer's uncompressed tar.
    pub diff_id: Digest,
    /// Whether its root hides all layers below.
    pub opaque_root: bool,
    /// Directories it has without an entry of their own.
    pub implicit_dirs: Vec<Vec<u8>>,
    /// Bytes of the tar.
    pub tar_size: u64,
    /// How to make the tar again.
    pub recipe: Recipe,
}

impl Description {
    /// Writes it behind what ends at byte `behind`, and returns the length of the file.
    pub(super) fn append(&self, file: &File, behind: u64) -> io::Result<u64> {
        let json = serde_json::to_vec(self)?;
        let start = behind.next_multiple_of(BLOCK);
        let end = (start + json.len() as u64 + TRAILER as u64).next_multiple_of(BLOCK);
        let mut trailer = [0; TRAILER];
        let fields = [
            &MARK[..],
            &start.to_le_bytes(),
            &(json.len() as u64).to_le_bytes(),
            &Sha256::digest(&json),
        ];
        for (to, from) in trailer.iter_mut().zip(fields.concat()) {
            *to = from;
        }
        file.write_all_at(&json, start)?;
        file.write_all_at(&trailer, end - TRAILER as u64)?;
        Ok(end)
    }

    /// Reads what a file says of itself; `None` if it says nothing (it may be of a release that
    /// did not write it) or is damaged. Blocks.
    pub fn read(path: &Path) -> Option<Self> {
        let file = File::open(path).ok()?;
        let length = file
            .metadata()
            .ok()
            .filter(std::fs::Metadata::is_file)?
            .len();
        let mut trailer = [0; TRAILER];
        let at = length.checked_sub(TRAILER as u64)?;
        file.read_exact_at(&mut trailer, at).ok()?;
        let (mark, rest) = trailer.split_first_chunk::<16>()?;
        let (start, rest) = rest.split_first_chunk::<8>()?;
        let (size, hash) = rest.split_first_chunk::<8>()?;
        let (start, size) = (u64::from_le_bytes(*start), u64::from_le_bytes(*size));
        let fits = start.checked_add(size).is_some_and(|end| end <= at);
        if *mark != MARK || !fits || size > LARGEST {
            return None;
        }
        let mut json = vec![0; usize::try_from(size).ok()?];
        file.read_exact_at(&mut json, start).ok()?;
        if Sha256::digest(&json)[..] != *hash {
            return None;
        }
        serde_json::from_slice(&json).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_back_and_damage_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("layer");
        std::fs::write(&path, vec![7; 8192]).unwrap();
        let description = Description {
            diff_id: Digest::of(b"x"),
            opaque_root: true,
            implicit_dirs: vec![b"tmp".to_vec(), b"\xff\x00".to_vec()],
            tar_size: 5,
            recipe: Recipe::default(),
        };
        let file = File::options().write(true).open(&path).unwrap();
        let length = description.append(&file, 8192).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!((length, length % BLOCK), (bytes.len() as u64, 0));
        assert!(
            bytes[..8192].iter().all(|b| *b == 7),
            "the image is as it was"
        );
        assert_eq!(Description::read(&path), Some(description));

        let json = 8192..8192 + 40;
        let trailer = bytes.len() - TRAILER..bytes.len();
        for at in json.chain(trailer) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x81;
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(Description::read(&path), None, "{at}");
        }
        for length in [0, 63, 64, 8192, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert_eq!(Description::read(&path), None, "{length}");
        }
        assert_eq!(Description::read(dir.path()), None);
        assert_eq!(Description::read(&dir.path().join("none")), None);
    }

    #[test]
    fn a_description_of_absurd_size_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("layer");
        for (start, size) in [(0, u64::MAX), (u64::MAX, 2), (0, LARGEST + 1), (4096, 1)] {
            let trailer = [
                &MARK[..],
                &u64::to_le_bytes(start),
                &size.to_le_bytes(),
                &[0; 32],
            ];
            let mut bytes = vec![0; 4096 - TRAILER];
            bytes.extend(trailer.concat());
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(Description::read(&path), None);
        }
    }
}
