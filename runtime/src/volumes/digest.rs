//! Short names for what has a long one or a hostile one.

use sha2::{Digest as _, Sha256};

/// The first hex digits of the SHA-256 of some bytes.
pub(super) fn digest(bytes: &[u8], digits: usize) -> String {
    hex::encode(Sha256::digest(bytes))
        .chars()
        .take(digits)
        .collect()
}
