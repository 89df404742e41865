//! A pod's cgroup as a kubelet makes it, and a pod in it: the runtime goes inside.

use std::{
    fs,
    path::{Path, PathBuf},
};

use bulkhead_proto::cri::{LinuxContainerResources, PodSandboxConfig};

use crate::{Failure, Outcome, cri::pod};

const ROOT: &str = "/sys/fs/cgroup";

/// The cgroup; gone with the test, if the test removes it.
pub(crate) struct PodCgroup {
    parent: String,
    path: PathBuf,
}

impl PodCgroup {
    /// Makes it, with those above it; `parent` is CRI's `cgroup_parent`, a path.
    pub(crate) fn make(parent: &str) -> Result<Self, Failure> {
        let made = Self::made(parent);
        fs::create_dir_all(&made.path)?;
        let mut levels: Vec<_> = made.levels().skip(1).collect();
        levels.push(Path::new(ROOT));
        // The root first: a level can give what the one above gives it.
        for level in levels.iter().rev() {
            fs::write(level.join("cgroup.subtree_control"), "+memory +cpu +pids")?;
        }
        Ok(made)
    }

    /// One that the runtime has made.
    pub(crate) fn made(parent: &str) -> Self {
        Self {
            parent: parent.to_owned(),
            path: Path::new(ROOT).join(parent.trim_start_matches('/')),
        }
    }

    /// CRI's `cgroup_parent`.
    pub(crate) fn parent(&self) -> &str {
        &self.parent
    }

    /// Its directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The cgroup that holds it.
    pub(crate) fn above(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(ROOT))
    }

    pub(crate) fn set(&self, file: &str, value: impl ToString) -> Outcome {
        Ok(fs::write(self.path.join(file), value.to_string())?)
    }

    pub(crate) fn read(&self, file: &str) -> Result<String, Failure> {
        Ok(fs::read_to_string(self.path.join(file))?)
    }

    /// Removes it, and those above it.
    pub(crate) fn remove(self) -> Outcome {
        for level in self.levels() {
            fs::remove_dir(level)?;
        }
        Ok(())
    }

    /// Itself and those above it, without the root.
    fn levels(&self) -> impl Iterator<Item = &Path> {
        let levels = self.path.ancestors();
        levels.take_while(|level| *level != Path::new(ROOT))
    }
}

/// A pod in this cgroup, with these memory limits in bytes; 0 is none.
pub(crate) fn pod_in(name: &str, parent: &str, memory: i64, overhead: i64) -> PodSandboxConfig {
    let limit = |bytes| {
        (bytes != 0).then(|| LinuxContainerResources {
            memory_limit_in_bytes: bytes,
            ..LinuxContainerResources::default()
        })
    };
    let mut config = pod(name);
    if let Some(linux) = &mut config.linux {
        parent.clone_into(&mut linux.cgroup_parent);
        linux.resources = limit(memory);
        linux.overhead = limit(overhead);
    }
    config
}
