//! Which of the node's processors and memory nodes a cgroup allows what is below it.

use std::{fs, io, path::Path};

use crate::number_set::NumberSet;

/// Where the kernel lists the node's own.
const CPUS_ONLINE: &str = "/sys/devices/system/cpu/online";
const MEMS_ONLINE: &str = "/sys/devices/system/node/has_memory";

/// What may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed {
    /// Processors.
    pub cpus: NumberSet,
    /// Memory nodes.
    pub mems: NumberSet,
}

/// What `cgroup`, which lies below `root`, allows. A level without the controller, or that is not there
/// yet, has what the one above it has. Blocks.
///
/// # Errors
/// If neither a level nor the node itself says what there is.
pub fn allowed(root: &Path, cgroup: &Path) -> io::Result<Allowed> {
    let mems = find(root, cgroup, "cpuset.mems.effective", MEMS_ONLINE);
    Ok(Allowed {
        cpus: find(root, cgroup, "cpuset.cpus.effective", CPUS_ONLINE)?,
        // Without NUMA in the kernel there is one node.
        mems: mems.unwrap_or_else(|_| NumberSet::from_iter([0])),
    })
}

fn find(root: &Path, cgroup: &Path, file: &str, node: &str) -> io::Result<NumberSet> {
    let levels = cgroup
        .ancestors()
        .take_while(|level| level.starts_with(root));
    for level in levels {
        match read(&level.join(file)) {
            Ok(set) if !set.is_empty() => return Ok(set),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    read(Path::new(node))
}

fn read(file: &Path) -> io::Result<NumberSet> {
    let text = fs::read_to_string(file)?;
    NumberSet::parse(text.trim()).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Leaf;

    #[test]
    fn the_nearest_level_that_says_something_counts() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let pod = root.join("kubepods/pod");
        let node = allowed(root, &pod).unwrap();
        assert!(!node.cpus.is_empty() && node.mems.contains(0));
        fs::create_dir_all(&pod).unwrap();
        let set = |level: &Path, cpus: &str, mems: &str| {
            fs::write(level.join("cpuset.cpus.effective"), format!("{cpus}\n")).unwrap();
            fs::write(level.join("cpuset.mems.effective"), format!("{mems}\n")).unwrap();
        };
        let shown = || {
            let allowed = allowed(root, &pod).unwrap();
            (allowed.cpus.to_string(), allowed.mems.to_string())
        };
        set(root, "0-127", "0-1");
        assert_eq!(shown(), ("0-127".to_owned(), "0-1".to_owned()));
        set(&root.join("kubepods"), "2-9", "1");
        assert_eq!(shown(), ("2-9".to_owned(), "1".to_owned()));
        set(&pod, "", "");
        assert_eq!(shown(), ("2-9".to_owned(), "1".to_owned()));
        set(&pod, "4", "0");
        assert_eq!(shown(), ("4".to_owned(), "0".to_owned()));
    }

    #[test]
    fn a_leaf_is_bound_and_let_go() {
        let dir = tempfile::tempdir().unwrap();
        let leaf = Leaf::of(dir.path(), "a");
        fs::create_dir(leaf.path()).unwrap();
        // Without the controller: nothing to lift, and nothing to bind by.
        leaf.place(dir.path(), "", "").unwrap();
        let error = leaf.place(dir.path(), "1", "").unwrap_err();
        assert!(error.to_string().contains("cpuset"), "{error}");
        for (file, all) in [("cpus", "0-7"), ("mems", "0-1")] {
            let file = dir.path().join(format!("cpuset.{file}.effective"));
            fs::write(file, all).unwrap();
        }
        let files = ["cpuset.cpus", "cpuset.mems"].map(|file| leaf.path().join(file));
        for file in &files {
            fs::write(file, "").unwrap();
        }
        let placed = |cpus, mems| {
            leaf.place(dir.path(), cpus, mems).unwrap();
            files
                .each_ref()
                .map(|file| fs::read_to_string(file).unwrap())
        };
        assert_eq!(placed("", ""), ["", ""]);
        assert_eq!(placed("0-1,4", ""), ["0-1,4\n", ""]);
        assert_eq!(placed("2", "1"), ["2\n", "1\n"]);
        // What was bound once is so by all there is.
        assert_eq!(placed("", ""), ["0-7\n", "0-1\n"]);
    }
}
