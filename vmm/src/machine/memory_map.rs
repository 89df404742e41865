//! How much of this process is resident, and how much of that is guest memory.

use std::fs::File;
use std::io::{self, Read, Seek};

/// /proc/self/smaps, opened before the jail hides it.
#[derive(Debug)]
pub struct MemoryMap(File);

impl MemoryMap {
    /// Opens it for this process.
    ///
    /// # Errors
    /// When there is no /proc.
    pub fn open() -> io::Result<Self> {
        File::open("/proc/self/smaps").map(MemoryMap)
    }

    /// Resident bytes: of the ranges given, and of everything else.
    pub(super) fn resident(&mut self, ranges: &[(u64, u64)]) -> io::Result<(u64, u64)> {
        self.0.rewind()?;
        let mut text = String::new();
        self.0.read_to_string(&mut text)?;
        Ok(sum(&text, ranges))
    }
}

/// Adds up the Rss lines of smaps, inside of `ranges` (start, end) and outside.
fn sum(text: &str, ranges: &[(u64, u64)]) -> (u64, u64) {
    let (mut inside, mut outside) = (0, 0);
    let mut is_inside = false;
    for line in text.lines() {
        if let Some(value) = line.strip_prefix("Rss:") {
            let kib: u64 = value
                .trim()
                .trim_end_matches("kB")
                .trim()
                .parse()
                .unwrap_or(0);
            let total = if is_inside { &mut inside } else { &mut outside };
            *total += kib * 1024;
        } else if let Some((start, end)) = mapping(line) {
            // Overlap, as the kernel may join neighbouring mappings of one kind.
            is_inside = ranges.iter().any(|(from, to)| start < *to && *from < end);
        }
    }
    (inside, outside)
}

/// Start and end of a mapping, when the line is the head of one.
fn mapping(line: &str) -> Option<(u64, u64)> {
    let (start, rest) = line.split_once('-')?;
    let (end, _) = rest.split_once(' ')?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    Some((hex(start)?, hex(end)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_counted_apart_from_the_rest() {
        let text = "1000-3000 rw-p 00000000 00:00 0 \nSize: 8 kB\nRss:  8 kB\n\
                    7f00000-7f02000 rw-p 00000000 00:00 0 [heap]\nRss:  4 kB\nVmFlags: rd wr\n";
        assert_eq!(sum(text, &[(0x1000, 0x3000)]), (8192, 4096));
        assert_eq!(sum(text, &[]), (0, 12288));
    }
}
