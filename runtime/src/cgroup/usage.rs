//! What a cgroup of the host uses. Files that are not there (a controller that is not on) give
//! nothing: the caller says nothing then, rather than zero.

use std::{fs, path::Path};

/// A cgroup's use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time in nanoseconds.
    pub cpu_ns: Option<u64>,
    /// Memory; `None` where the memory controller is not on.
    pub memory: Option<Memory>,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Everything charged.
    pub usage: u64,
    /// Without the file cache that can be dropped at once, as cAdvisor counts it.
    pub working_set: u64,
    /// Anonymous memory.
    pub rss: u64,
    /// Faults since the beginning.
    pub page_faults: u64,
    /// Those that had to read.
    pub major_page_faults: u64,
}

/// Reads it. Blocks.
pub fn usage(cgroup: &Path) -> Usage {
    let read = |name: &str| fs::read_to_string(cgroup.join(name)).ok();
    let cpu = read("cpu.stat").and_then(|text| value(&text, "usage_usec"));
    let memory = read("memory.current")
        .and_then(|text| text.trim().parse::<u64>().ok())
        .map(|usage| {
            let stat = read("memory.stat").unwrap_or_default();
            let of = |key| value(&stat, key).unwrap_or(0);
            Memory {
                usage,
                working_set: usage.saturating_sub(of("inactive_file")),
                rss: of("anon"),
                page_faults: of("pgfault"),
                major_page_faults: of("pgmajfault"),
            }
        });
    Usage {
        cpu_ns: cpu.map(|us| us.saturating_mul(1_000)),
        memory,
    }
}

fn value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_counted_is_not_told_as_zero() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(usage(dir.path()), Usage::default());
        fs::write(dir.path().join("cpu.stat"), "usage_usec 5\nuser_usec 4\n").unwrap();
        fs::write(dir.path().join("memory.current"), "100\n").unwrap();
        fs::write(
            dir.path().join("memory.stat"),
            "anon 60\ninactive_file 30\n",
        )
        .unwrap();
        let got = usage(dir.path());
        assert_eq!(got.cpu_ns, Some(5_000));
        let memory = got.memory.unwrap();
        assert_eq!(
            (memory.usage, memory.working_set, memory.rss),
            (100, 70, 60)
        );
    }
}
