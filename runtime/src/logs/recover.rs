//! Where the streams of a process stand in its log: the checkpoint, and reading the log's end
//! again after the daemon died.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use bulkhead_proto::agent::Stream;
use serde::{Deserialize, Serialize};

use super::{
    LogError,
    format::{CONTENT_LIMIT, parse_line},
    offsets::Offsets,
};
use crate::listing::file_names;

/// Longer than any line of ours: time, stream, tag, content. What is longer is not ours.
const LINE_LIMIT: usize = CONTENT_LIMIT + 256;
/// A checkpoint is a few numbers.
const CHECKPOINT_LIMIT: u64 = 4096;

/// "When the file with this inode was this long, the streams were here."
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The file's inode number (with `device`); 0 if there is no file.
    pub inode: u64,
    /// The device of the file.
    pub device: u64,
    /// Length of the file.
    pub length: u64,
    /// The streams at that length.
    pub offsets: Offsets,
    /// All output is in the log; nothing more will come.
    pub ended: bool,
}

/// The directory of the checkpoints, one small file per container. They are not in the records'
/// database: each commit there is an fsync, and these need none (`kill -9` loses no page cache,
/// and a power failure ends the pods too).
#[derive(Debug, Clone)]
pub struct Checkpoints {
    directory: PathBuf,
}

impl Checkpoints {
    /// In this directory, which is made when first written to.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    fn path(&self, container: &str) -> PathBuf {
        self.directory.join(format!("{container}.json"))
    }

    /// The container's last checkpoint, if there is one. Blocks.
    pub fn load(&self, container: &str) -> Result<Option<Checkpoint>, LogError> {
        let path = self.path(container);
        let failed = |source| LogError::Io {
            action: "read the checkpoint of",
            path: path.clone(),
            source,
        };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        let mut text = Vec::new();
        file.take(CHECKPOINT_LIMIT)
            .read_to_end(&mut text)
            .map_err(failed)?;
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|source| LogError::Checkpoint {
                path: path.clone(),
                source,
            })
    }

    /// Writes a checkpoint: a new file takes the old one's place in one step. Blocks.
    pub fn store(&self, container: &str, checkpoint: &Checkpoint) -> Result<(), LogError> {
        let path = self.path(container);
        let failed = |source| LogError::Io {
            action: "write the checkpoint of",
            path: path.clone(),
            source,
        };
        let text = serde_json::to_vec(checkpoint).map_err(|source| LogError::Checkpoint {
            path: path.clone(),
            source,
        })?;
        let new = self.directory.join(format!("{container}.new"));
        let written = std::fs::write(&new, &text).or_else(|e| {
            if e.kind() != io::ErrorKind::NotFound {
                return Err(e);
            }
            std::fs::create_dir_all(&self.directory)?;
            std::fs::write(&new, &text)
        });
        written
            .and_then(|()| std::fs::rename(&new, &path))
            .map_err(failed)
    }

    /// Forgets a container. Blocks.
    pub fn remove(&self, container: &str) -> Result<(), LogError> {
        for path in [
            self.path(container),
            self.directory.join(format!("{container}.new")),
        ] {
            match std::fs::remove_file(&path) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(source) => {
                    return Err(LogError::Io {
                        action: "remove the checkpoint of",
                        path,
                        source,
                    });
                }
            }
        }
        Ok(())
    }

    /// The containers that have one. Blocks.
    pub fn list(&self) -> Result<Vec<String>, LogError> {
        let failed = |source| LogError::Io {
            action: "list the checkpoints of",
            path: self.directory.clone(),
            source,
        };
        let mut found = Vec::new();
        for name in file_names(&self.directory).map_err(failed)? {
            let name = name.to_string_lossy();
            if let Some(id) = name
                .strip_suffix(".json")
                .or_else(|| name.strip_suffix(".new"))
            {
                found.push(id.to_owned());
            }
        }
        Ok(found)
    }
}

/// What the end of a log says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail {
    /// Length up to the end of the last whole line.
    pub length: u64,
    /// The streams there.
    pub offsets: Offsets,
}

/// Reads the log from `from.length` on and counts what its lines stand for. A last line without
/// newline is torn: it is not counted, and `length` ends before it. Lines that are none of ours
/// count nothing.
pub fn read_tail(file: &mut File, from: &Checkpoint) -> io::Result<Tail> {
    let mut tail = Tail {
        length: from.length,
        offsets: from.offsets,
    };
    if file.metadata()?.len() <= from.length {
        // Shorter than it was: somebody cut it. There is nothing to count from.
        tail.length = file.metadata()?.len();
        return Ok(tail);
    }
    file.seek(SeekFrom::Start(from.length))?;
    let mut reader = BufReader::with_capacity(128 * 1024, file);
    let mut line = Vec::new();
    let mut length = 0u64; // of the line so far, of which `line` keeps at most LINE_LIMIT bytes
    loop {
        let chunk = reader.fill_buf()?;
        if chunk.is_empty() {
            return Ok(tail);
        }
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let part = chunk.get(..end.unwrap_or(chunk.len())).unwrap_or_default();
        let keep = LINE_LIMIT.saturating_sub(line.len()).min(part.len());
        line.extend_from_slice(part.get(..keep).unwrap_or_default());
        length += part.len() as u64;
        let used = part.len() + usize::from(end.is_some());
        reader.consume(used);
        if end.is_some() {
            if length <= LINE_LIMIT as u64
                && let Some(parsed) = parse_line(&line)
            {
                match parsed.stream {
                    Stream::Stdout => tail.offsets.stdout += parsed.length(),
                    Stream::Stderr => tail.offsets.stderr += parsed.length(),
                }
            }
            tail.length += length + 1;
            line.clear();
            length = 0;
        }
    }
}

/// Looks in the log's own directory for the file a checkpoint speaks of: the kubelet rotates by
/// renaming there, and may have done so just before the daemon died. Blocks.
pub fn find_rotated(log: &Path, checkpoint: &Checkpoint) -> io::Result<Option<File>> {
    let Some(directory) = log.parent() else {
        return Ok(None);
    };
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        // Of the directory entry itself: links are not followed.
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_file() && meta.ino() == checkpoint.inode && meta.dev() == checkpoint.device {
            return File::open(entry.path()).map(Some);
        }
    }
    Ok(None)
}
