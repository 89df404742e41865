//! How much a container has written: a walk over its upper directory, bounded and remembered,
//! because the daemon asks every ten seconds and an upper directory can have a million files.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::mutex::lock;

/// How old a remembered answer may be.
const FRESH: Duration = Duration::from_secs(10);
/// How many files one walk looks at. Beyond, the answer is too small, never late.
const MAX_ENTRIES: u64 = 200_000;

/// When it was counted, and what: bytes and inodes.
type Counted = (Instant, (u64, u64));

/// Remembered answers by container.
#[derive(Debug, Default)]
pub struct Usage(Mutex<HashMap<String, Counted>>);

impl Usage {
    /// Bytes and inodes of a container's upper directory.
    pub async fn of(&self, id: &str, upper: &Path) -> (u64, u64) {
        if let Some((when, answer)) = self.lock().get(id)
            && when.elapsed() < FRESH
        {
            return *answer;
        }
        let path = upper.to_owned();
        let answer = tokio::task::spawn_blocking(move || walk(&path))
            .await
            .unwrap_or_default();
        self.lock().insert(id.to_owned(), (Instant::now(), answer));
        answer
    }

    /// Forgets containers that are not among these.
    pub fn retain(&self, known: impl Fn(&str) -> bool) {
        self.lock().retain(|id, _| known(id));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Counted>> {
        lock(&self.0)
    }
}

/// Sums what the files below a directory occupy; links are not followed, hard links within the
/// layer counted as often as they appear.
fn walk(root: &Path) -> (u64, u64) {
    let (mut bytes, mut inodes) = (0u64, 0u64);
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        // Files come and go while we look.
        let Ok(entries) = std::fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries.flatten() {
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            bytes = bytes.saturating_add(metadata.blocks().saturating_mul(512));
            inodes += 1;
            if inodes >= MAX_ENTRIES {
                return (bytes, inodes);
            }
            if metadata.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    (bytes, inodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_and_directories_count_and_links_are_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("a")).unwrap();
        std::fs::write(directory.path().join("a/b"), vec![1; 100_000]).unwrap();
        std::os::unix::fs::symlink("/", directory.path().join("root")).unwrap();
        let (bytes, inodes) = Usage::default().of("c", directory.path()).await;
        assert_eq!(inodes, 3);
        assert!((100_000..300_000).contains(&bytes), "{bytes}");
    }
}
