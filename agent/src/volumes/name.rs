//! The names of volumes.

use super::error::VolumeError;
use crate::names::is_name;

/// Refuses what is not a name; it becomes part of paths.
///
/// # Errors
/// [`VolumeError::Invalid`].
pub(super) fn check_name(field: &'static str, name: &str) -> Result<(), VolumeError> {
    if is_name(name, 64) {
        return Ok(());
    }
    Err(VolumeError::Invalid {
        field,
        value: name.chars().take(100).collect(),
        allowed: "1 to 64 characters of A-Z a-z 0-9 . _ -",
    })
}
