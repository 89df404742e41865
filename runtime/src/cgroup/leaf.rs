//! The leaf cgroup a pod's VMM runs in, below `cgroup_parent`.

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::Errno,
    process::{Pid, WaitId, WaitIdOptions, waitid},
};

use super::{CgroupError, is_gone};

/// Leaves are called this and the sandbox id.
const NAME_PREFIX: &str = "bulkhead-";
/// SIGKILL is on its way; what remains is the kernel's teardown of a guest's memory.
const EMPTY_DEADLINE: Duration = Duration::from_secs(10);
/// kubepods / QoS class / pod / leaf, each a level; systemd's slices nest one deeper.
const STRAY_DEPTH: usize = 6;

/// A pod's cgroup, by path.
#[derive(Debug, Clone)]
pub struct Leaf {
    path: PathBuf,
}

impl Leaf {
    /// Below a parent (an absolute directory), for a sandbox.
    pub fn of(parent: &Path, sandbox_id: &str) -> Self {
        Self {
            path: parent.join(format!("{NAME_PREFIX}{sandbox_id}")),
        }
    }

    /// One that is on record.
    pub fn at(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it, with its parents where the kubelet has not, and opens its cgroup.procs for the
    /// VMM: cgroup v2 asks for the rights of who opened the file (cgroups(7)). Blocks.
    pub fn create(&self, root: &Path) -> Result<OwnedFd, CgroupError> {
        check_v2(root)?;
        let io = |action, source| CgroupError::Io {
            action,
            path: self.path.clone(),
            source,
        };
        // A parent that another pod's end removes in between is made again.
        let mut tries = 3;
        while let Err(e) = fs::create_dir_all(&self.path) {
            tries -= 1;
            if e.kind() != io::ErrorKind::NotFound || tries == 0 {
                return Err(io("create", e));
            }
        }
        if let Some(parent) = self.path.parent() {
            enable_controllers(root, parent);
        }
        OpenOptions::new()
            .write(true)
            .open(self.path.join("cgroup.procs"))
            .map(OwnedFd::from)
            .map_err(|e| io("open cgroup.procs of", e))
    }
}

impl Leaf {
    /// For a leaf that is beside its pod's cgroup: as much memory as the VM takes, and the pod's share of
    /// CPU time. Where a controller is not on there is no file, and no limit anywhere. Blocks.
    ///
    /// # Errors
    /// If the kernel refuses a limit.
    pub fn bound(&self, pod: &Path, memory: u64) -> Result<(), CgroupError> {
        let mut limits = vec![("memory.max", memory.to_string())];
        for file in ["cpu.weight", "cpu.max"] {
            if let Ok(text) = fs::read_to_string(pod.join(file)) {
                limits.push((file, text.trim().to_owned()));
            }
        }
        for (file, value) in limits {
            let file = self.path.join(file);
            match OpenOptions::new().write(true).open(&file) {
                Ok(open) => {
                    io::Write::write_all(&mut &open, value.as_bytes()).map_err(|source| {
                        CgroupError::Io {
                            action: "set a limit of",
                            path: file,
                            source,
                        }
                    })?
                }
                Err(e) => tracing::debug!(file = %file.display(), "no limit: {e}"),
            }
        }
        Ok(())
    }
}

/// That the root of the hierarchy is version 2. Blocks.
pub fn check_v2(root: &Path) -> Result<(), CgroupError> {
    if root.join("cgroup.controllers").is_file() {
        return Ok(());
    }
    Err(CgroupError::NotV2 {
        root: root.to_owned(),
    })
}

/// Lets the leaf count memory, CPU and processes, where the levels above allow it. Not an error
/// where they do not: the limits are the kubelet's, on the pod's level, and hold anyway.
fn enable_controllers(root: &Path, parent: &Path) {
    let Ok(below) = parent.strip_prefix(root) else {
        return;
    };
    let mut level = root.to_owned();
    let mut levels = vec![level.clone()];
    for part in below.components() {
        level.push(part);
        levels.push(level.clone());
    }
    for level in levels {
        for controller in ["+cpu", "+memory", "+pids", "+io"] {
            if let Err(e) = fs::write(level.join("cgroup.subtree_control"), controller) {
                tracing::trace!(cgroup = %level.display(), controller, "not enabled: {e}");
            }
        }
    }
}

/// Kills what is in a cgroup and below it; one that is gone is fine. Blocks, in bounded time.
pub fn kill(path: &Path) -> Result<(), CgroupError> {
    let mut inside = Vec::new();
    for level in with_children(path) {
        inside.extend(processes(&level));
    }
    match fs::write(path.join("cgroup.kill"), "1") {
        Ok(()) => {}
        Err(e) if is_gone(&e) && !path.exists() => return Ok(()),
        Err(source) => {
            return Err(CgroupError::Io {
                action: "kill what is in",
                path: path.to_owned(),
                source,
            });
        }
    }
    wait_empty(path)?;
    for pid in inside {
        // What a process that failed to start has left, or an agent on the host that died, is our
        // child by now (the daemon is a subreaper) and would stay a zombie. Everything else is not
        // ours: ECHILD, at once.
        let _reaped = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED);
    }
    for pid in zombies(path) {
        let _reaped = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED);
    }
    Ok(())
}

/// Our children that had ended in a cgroup before anyone looked: cgroup.procs leaves zombies out,
/// but each still says where it was.
fn zombies(cgroup: &Path) -> Vec<Pid> {
    let Some(leaf) = cgroup.file_name() else {
        return Vec::new();
    };
    let own = rustix::process::getpid().as_raw_nonzero().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The second field, the name, is in parentheses and may hold anything (proc_pid_stat(5)).
        let mut fields = stat
            .rsplit_once(')')
            .map_or("", |(_, rest)| rest)
            .split_whitespace();
        if fields.next() != Some("Z") || fields.next() != Some(own.as_str()) {
            continue;
        }
        let place = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        let place = place.lines().find_map(|line| line.strip_prefix("0::"));
        let place = place.map(|path| path.strip_suffix(" (deleted)").unwrap_or(path));
        if place.is_some_and(|path| Path::new(path).iter().any(|part| part == leaf)) {
            found.extend(Pid::from_raw(pid));
        }
    }
    found
}

/// A cgroup and all below it, the deepest first.
fn with_children(path: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.extend(with_children(&entry.path()));
        }
    }
    all.push(path.to_owned());
    all
}

/// Kills what is in a cgroup and below it and removes them; one that is gone is no error. Blocks,
/// in bounded time.
pub fn remove(path: &Path) -> Result<(), CgroupError> {
    let io = |action, source| CgroupError::Io {
        action,
        path: path.to_owned(),
        source,
    };
    match fs::remove_dir(path) {
        Ok(()) => return Ok(()),
        Err(e) if is_gone(&e) => return Ok(()),
        // EBUSY: processes or further cgroups are in it.
        Err(e) if Errno::from_io_error(&e) == Some(Errno::BUSY) => {}
        Err(e) => return Err(io("remove", e)),
    }
    kill(path)?;
    for level in with_children(path) {
        match fs::remove_dir(level) {
            Err(e) if !is_gone(&e) => return Err(io("remove", e)),
            _ => {}
        }
    }
    Ok(())
}

fn processes(path: &Path) -> Vec<Pid> {
    let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.parse().ok().and_then(Pid::from_raw))
        .collect()
}

/// Waits until cgroup.events says `populated 0`; the kernel raises POLLPRI at each change.
fn wait_empty(path: &Path) -> Result<(), CgroupError> {
    let io = |source| CgroupError::Io {
        action: "watch",
        path: path.to_owned(),
        source,
    };
    let busy = || CgroupError::Busy {
        path: path.to_owned(),
        seconds: EMPTY_DEADLINE.as_secs(),
    };
    let end = std::time::Instant::now() + EMPTY_DEADLINE;
    let name = path.join("cgroup.events");
    let file = match File::open(&name) {
        Err(e) if is_gone(&e) => return Ok(()),
        opened => opened.map_err(io)?,
    };
    loop {
        // Reading arms the next event for this descriptor; read by a second one, the file is
        // short and needs its beginning each time.
        let mut text = String::new();
        match io::Read::read_to_string(&mut &file, &mut text) {
            Err(e) if is_gone(&e) => return Ok(()),
            read => read.map_err(io)?,
        };
        io::Seek::rewind(&mut &file).map_err(io)?;
        if text.lines().any(|line| line == "populated 0") {
            return Ok(());
        }
        let left = end.saturating_duration_since(std::time::Instant::now());
        if left.is_zero() {
            return Err(busy());
        }
        let left = Timespec::try_from(left).map_err(|_| busy())?;
        let mut fds = [PollFd::new(&file, PollFlags::PRI)];
        match rustix::event::poll(&mut fds, Some(&left)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(io(e.into())),
        }
    }
}

/// The leaves of these sandboxes, wherever below the root they are. Blocks.
pub fn find(root: &Path, ids: &HashSet<String>) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut level = vec![root.to_owned()];
    for _ in 0..STRAY_DEPTH {
        let mut next = Vec::new();
        for dir in level {
            for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                let name = entry.file_name();
                match name.to_str().and_then(|n| n.strip_prefix(NAME_PREFIX)) {
                    Some(id) if ids.contains(id) => found.push(entry.path()),
                    _ => next.push(entry.path()),
                }
            }
        }
        level = next;
    }
    found
}
