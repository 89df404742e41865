//! What a directory of the daemon's own holds. What the names mean is for its owner to say.

use std::{ffi::OsString, fs, io, path::Path};

/// The names in a directory, in no order; none if there is no such directory. Blocks.
///
/// # Errors
/// If it cannot be read to its end.
pub fn file_names(dir: &Path) -> io::Result<Vec<OsString>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| Ok(entry?.file_name())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_not_there_holds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert!(file_names(&dir.path().join("absent")).unwrap().is_empty());
        fs::write(dir.path().join("one"), "").unwrap();
        assert_eq!(file_names(dir.path()).unwrap(), ["one"]);
        file_names(&dir.path().join("one")).unwrap_err();
    }
}
