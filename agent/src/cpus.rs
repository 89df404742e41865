//! The guest's processors: brought online and offline through sysfs. The VMM makes them without
//! holes; the first is always there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where the kernel has them.
pub const SYSFS: &str = "/sys/devices/system/cpu";

/// A processor could not be brought online or offline.
#[derive(Debug, thiserror::Error)]
#[error("bringing a processor {direction} by writing to {}", path.display())]
pub struct CpuError {
    /// `online` or `offline`.
    direction: &'static str,
    /// Its file.
    path: PathBuf,
    /// The kernel's answer.
    #[source]
    error: io::Error,
}

/// Brings processors online and offline until `wanted` of those present are online; 0 means all.
/// More than are present is all.
///
/// # Errors
/// The first the kernel refuses; the ones before it stay as they were brought.
pub fn online(directory: &Path, wanted: u32) -> Result<(), CpuError> {
    let last = last_present(directory);
    let keep = match wanted {
        0 => last,
        wanted => (wanted - 1).min(last),
    };
    let up = (1..=keep).map(|cpu| (cpu, true));
    // The last go first, so that those left are without holes.
    let down = (keep + 1..=last).rev().map(|cpu| (cpu, false));
    for (cpu, up) in up.chain(down) {
        set(directory.join(format!("cpu{cpu}/online")), up)?;
    }
    Ok(())
}

fn set(path: PathBuf, up: bool) -> Result<(), CpuError> {
    let value = if up { "1" } else { "0" };
    match fs::read_to_string(&path) {
        // A processor that cannot go offline has no such file.
        Err(_) => return Ok(()),
        Ok(state) if state.trim() == value => return Ok(()),
        Ok(_) => {}
    }
    fs::write(&path, value).map_err(|error| CpuError {
        direction: if up { "online" } else { "offline" },
        path,
        error,
    })
}

/// The highest number in `present`: "0" or "0-3".
fn last_present(directory: &Path) -> u32 {
    let present = fs::read_to_string(directory.join("present")).unwrap_or_default();
    let last = present.trim().rsplit('-').next();
    last.and_then(|last| last.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_wanted_are_online_and_the_last_go_first() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("present"), "0-3\n").unwrap();
        fs::create_dir(dir.path().join("cpu0")).unwrap();
        for cpu in 1..4 {
            fs::create_dir(dir.path().join(format!("cpu{cpu}"))).unwrap();
            fs::write(dir.path().join(format!("cpu{cpu}/online")), "0\n").unwrap();
        }
        let state = || {
            [1, 2, 3].map(|cpu| {
                let path = dir.path().join(format!("cpu{cpu}/online"));
                fs::read_to_string(path).unwrap().trim().to_owned()
            })
        };
        for (wanted, expected) in [
            (2, ["1", "0", "0"]),
            (4, ["1", "1", "1"]),
            (1, ["0", "0", "0"]),
            (0, ["1", "1", "1"]),
            (3, ["1", "1", "0"]),
            (99, ["1", "1", "1"]),
        ] {
            online(dir.path(), wanted).unwrap();
            assert_eq!(state(), expected, "{wanted}");
        }
        // Nothing there: nothing to do.
        online(&dir.path().join("none"), 3).unwrap();
    }
}
