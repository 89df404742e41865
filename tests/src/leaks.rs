//! What a test may not leave behind: the state of the machine in words, taken before and after.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{Failure, Outcome, host::Host, waiting::Progress};

/// The machine, as far as the daemon can leave things in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    things: BTreeSet<String>,
    /// What the daemon has open, and how often.
    descriptors: BTreeMap<String, usize>,
}

/// How many descriptors more than before are still no leak: connections that are being closed.
const DESCRIPTOR_SLACK: usize = 3;

impl Snapshot {
    /// Looks at everything.
    ///
    /// # Errors
    /// If the machine cannot be looked at.
    pub fn take(host: &Host) -> Result<Self, Failure> {
        let mut things = BTreeSet::new();
        processes(&mut things)?;
        for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
            let point = line.split(' ').nth(4).unwrap_or(line);
            // The directory of the namespaces becomes a mount with the first pod and stays one.
            if !point.ends_with("/netns") {
                things.insert(format!("mount {point}"));
            }
        }
        for line in output("ip", &["-o", "link"])?.lines() {
            let name = line.split(": ").nth(1).unwrap_or(line);
            let name = name.split('@').next().unwrap_or(name);
            // The bridge is the network's, made with the first pod.
            if name != host.bridge() {
                things.insert(format!("link {name}"));
            }
        }
        for command in ["iptables-save", "ip6tables-save"] {
            for line in output(command, &["-t", "nat"])?
                .lines()
                .filter(|l| l.starts_with("-A"))
            {
                // Rules of a pod name its id or its ports; chains the plugins keep are theirs.
                if line.contains("CNI-DN-") || line.contains("--comment \"name:") {
                    things.insert(format!("{command} {line}"));
                }
            }
        }
        let (run, state) = (host.run_dir(), host.state_dir());
        for dir in ["pods", "netns"] {
            tree(&run.join(dir), &mut things, "file")?;
        }
        // Where the daemon makes namespaces, beside others'.
        tree(Path::new("/var/run/netns"), &mut things, "file")?;
        for dir in ["pods", "cni"] {
            tree(&state.join(dir), &mut things, "file")?;
        }
        for entry in list(&host.leases())? {
            // One file per leased address; `last_reserved_ip.N` and `lock` are the plugin's own.
            if entry
                .file_name()
                .is_some_and(|n| n.to_string_lossy().parse::<IpAddr>().is_ok())
            {
                things.insert(format!("lease {}", entry.display()));
            }
        }
        cgroups(Path::new("/sys/fs/cgroup"), &mut things)?;
        for device in list(Path::new("/sys/block"))? {
            // Pods on the host mount their images and disks from files.
            if let Ok(file) = fs::read_to_string(device.join("loop/backing_file")) {
                things.insert(format!("loop device of {}", file.trim()));
            }
        }
        let mut descriptors = BTreeMap::new();
        if let Some(pid) = host.daemon_pid() {
            for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
                *descriptors.entry(open_file(&entry?.path())).or_default() += 1;
            }
        }
        Ok(Self {
            things,
            descriptors,
        })
    }

    /// Waits until nothing is there that was not there before.
    ///
    /// # Errors
    /// What was left.
    pub async fn compare(&self, host: &Host) -> Outcome {
        let mut progress = Progress::default();
        loop {
            let now = Self::take(host)?;
            let left: Vec<_> = now.things.difference(&self.things).cloned().collect();
            let count = |of: &Self| of.descriptors.values().sum::<usize>();
            let more = count(&now).saturating_sub(count(self));
            if left.is_empty() && more <= DESCRIPTOR_SLACK {
                return Ok(());
            }
            let kinds: Vec<String> = now
                .descriptors
                .iter()
                .map(|(kind, now)| (kind, *now, self.descriptors.get(kind).copied()))
                .filter(|(_, now, before)| *now > before.unwrap_or(0))
                .map(|(kind, now, before)| format!("{kind}: {} to {now}", before.unwrap_or(0)))
                .collect();
            let what =
                format!("leaks to go: {left:?}, {more} descriptors of the daemon: {kinds:?}");
            progress.pause((left, more), &what).await?;
        }
    }
}

/// What an open file is, without what is another for each.
fn open_file(link: &Path) -> String {
    let target = fs::read_link(link).unwrap_or_default();
    let target = target.to_string_lossy();
    match target.split_once(":[") {
        Some((kind, _)) => kind.to_owned(),
        None => target.into_owned(),
    }
}

/// Pods' processes; not those of the tests.
fn processes(things: &mut BTreeSet<String>) -> Outcome {
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let Ok(name) = fs::read_to_string(path.join("comm")) else {
            continue;
        };
        let name = name.trim();
        if name.starts_with("bulkhead-vmm")
            || name.starts_with("bulkhead-agent")
            || ["bulkhead-launch", "bulkhead-pod"].contains(&name)
            || ["bridge", "portmap", "host-local"].contains(&name)
        {
            things.insert(format!("process {name} {}", path.display()));
        }
    }
    Ok(())
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries?.map(|entry| Ok(entry?.path())).collect(),
    }
}

fn tree(dir: &Path, things: &mut BTreeSet<String>, kind: &str) -> Outcome {
    for path in list(dir)? {
        // The templates of writable disks are made once per size and kept.
        if path.is_dir() && !path.is_symlink() {
            tree(&path, things, kind)?;
        }
        things.insert(format!("{kind} {}", path.display()));
    }
    Ok(())
}

fn cgroups(dir: &Path, things: &mut BTreeSet<String>) -> Outcome {
    for path in list(dir)? {
        if path.is_dir() {
            // The parent of pods for which none is named is made with the first and stays.
            if path != Path::new("/sys/fs/cgroup/bulkhead") {
                things.insert(format!("cgroup {}", path.display()));
            }
            // One that goes while it is read is gone.
            let _ = cgroups(&path, things);
        }
    }
    Ok(())
}

/// What a command prints.
///
/// # Errors
/// If it cannot be run or fails.
pub fn output(program: &str, args: &[&str]) -> Result<String, Failure> {
    let done = Command::new(program)
        .args(args)
        .output()
        .map_err(|error| format!("running {program}: {error}"))?;
    if !done.status.success() {
        let complaint = String::from_utf8_lossy(&done.stderr);
        return Err(format!("{program} {args:?}: {}: {complaint}", done.status).into());
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
