//! Files that get their name when they are whole: after a crash of the node there is the old one, or
//! the new one with all that is in it. Not here: records (`records`), layers (the images crate), and the
//! checkpoints of logs (`logs`), which are of no use after a crash of the node: its pods are gone.

use std::{
    fs::{self, File},
    io,
    io::Write as _,
    path::Path,
};

/// Replaces a file, or makes it. Blocks.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("tmp");
    let written = File::create(&beside)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| rename(&beside, path));
    if written.is_err() {
        let _gone = fs::remove_file(&beside);
    }
    written
}

/// Gives a finished file its name, once it is on disk. Blocks.
pub fn rename(unfinished: &Path, path: &Path) -> io::Result<()> {
    File::open(unfinished)?.sync_all()?;
    fs::rename(unfinished, path)?;
    // Else a name on disk may still mean the file before.
    match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => File::open(directory)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kept.json");
        for text in ["one", "two"] {
            replace(&path, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        }
        let missing = dir.path().join("none/kept.json");
        assert!(replace(&missing, b"x").is_err());
        assert!(rename(&dir.path().join("none"), &path).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
    }
}
