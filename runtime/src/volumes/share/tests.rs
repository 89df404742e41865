//! In a mount namespace of the test's own: needs root, else it says that it was skipped.

use std::{
    fs,
    io::BufRead as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use nix::sched::CloneFlags;

use std::os::fd::AsFd as _;

use super::*;

/// Runs with a private copy of all mounts, in a thread that ends with it.
fn apart(work: impl FnOnce(&Path) + Send + 'static) {
    let thread = std::thread::spawn(move || {
        if nix::sched::unshare(CloneFlags::CLONE_NEWNS).is_err() {
            println!("skipped: this needs CAP_SYS_ADMIN");
            return;
        }
        let all = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", all).unwrap();
        let dir = tempfile::tempdir().unwrap();
        work(dir.path());
        detach_all(dir.path()).unwrap();
    });
    thread.join().unwrap();
}

fn tmpfs(at: &Path) {
    fs::create_dir_all(at).unwrap();
    rustix::mount::mount("none", at, "tmpfs", MountFlags::NOSUID, None).unwrap();
}

/// A pod's share, and a process with mounts of its own in the place of its VMM.
struct Pod {
    share: Share,
    vmm: Child,
    inside: Inside,
}

impl Pod {
    fn new(dir: &Path) -> Self {
        let pod = dir.join("pod");
        fs::create_dir_all(pod.join("vm")).unwrap();
        let share = Share::of_pod(&pod);
        share.create().unwrap();
        let mut vmm = Command::new("unshare")
            .args(["--mount", "--propagation", "slave", "sh", "-c"])
            .arg("echo ready; exec sleep 1000")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut said = std::io::BufReader::new(vmm.stdout.take().unwrap());
        said.read_line(&mut line).unwrap();
        let pid = rustix::process::Pid::from_raw(i32::try_from(vmm.id()).unwrap()).unwrap();
        let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
        let inside = Inside {
            process: process.unwrap(),
            share: share.root().to_owned(),
        };
        Self { share, vmm, inside }
    }

    fn add(&self, name: &str, source: &Path, read_only: ReadOnly, follows_host: bool) {
        let source = rustix::fs::open(source, OFlags::PATH, Mode::empty()).unwrap();
        let options = MountOptions {
            read_only,
            follows_host,
            sealed: false,
            returns: false,
        };
        self.share
            .add(&self.inside, name, source.as_fd(), options)
            .unwrap();
    }

    /// A path of the share as the VMM sees it.
    fn seen(&self, path: &str) -> PathBuf {
        let root = self.share.root().strip_prefix("/").unwrap();
        Path::new(&format!("/proc/{}/root", self.vmm.id()))
            .join(root)
            .join(path)
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.vmm.kill().unwrap();
        self.vmm.wait().unwrap();
    }
}

#[test]
fn directories_and_files_are_shown_and_taken_away() {
    apart(|dir| {
        let pod = Pod::new(dir);
        let source = dir.join("source");
        fs::create_dir(&source).unwrap();
        fs::write(source.join("file"), "1").unwrap();
        let before = mounts().unwrap().len();
        pod.add("d", &source, ReadOnly::No, false);
        pod.add("d", &source, ReadOnly::No, false);
        pod.add("f", &source.join("file"), ReadOnly::No, false);
        assert_eq!(mounts().unwrap().len(), before, "seen outside");
        assert_eq!(fs::read(pod.seen("d/file")).unwrap(), b"1");
        fs::write(pod.seen("f"), "2").unwrap();
        assert_eq!(fs::read(source.join("file")).unwrap(), b"2");
        let error = fs::write(pod.seen("own"), "").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
        pod.share.remove(Some(&pod.inside), "d").unwrap();
        pod.share.remove(Some(&pod.inside), "d").unwrap();
        assert!(!pod.seen("d").exists() && source.join("file").exists());
        pod.share.destroy().unwrap();
        pod.share.destroy().unwrap();
        // Without a VMM only the entry is left to go.
        let share = pod.share.clone();
        drop(pod);
        share.remove(None, "f").unwrap();
        assert!(source.join("file").exists());
        assert!(
            mounts()
                .unwrap()
                .iter()
                .all(|m| !m.mount_point.starts_with(dir))
        );
    });
}

#[test]
fn read_only_is_the_top_or_all_of_it() {
    apart(|dir| {
        let pod = Pod::new(dir);
        let source = dir.join("source");
        tmpfs(&source);
        tmpfs(&source.join("below"));
        pod.add("top", &source, ReadOnly::Top, false);
        pod.add("all", &source, ReadOnly::Recursive, false);
        let at = |path: &str| fs::write(pod.seen(path), "x").map_err(|e| e.kind());
        let refused = Err(io::ErrorKind::ReadOnlyFilesystem);
        assert_eq!(at("top/x"), refused);
        assert_eq!(at("top/below/x"), Ok(()));
        assert_eq!(at("all/x"), refused);
        assert_eq!(at("all/below/x"), refused);
        // The source stays as it is, and so do the flags it has.
        fs::write(source.join("y"), "").unwrap();
        let list = fs::read(format!("/proc/{}/mountinfo", pod.vmm.id())).unwrap();
        let all = mountinfo::parse(&list);
        let seen = all.iter().find(|m| m.mount_point.ends_with("share/all"));
        let options = &seen.unwrap().options;
        assert!(options.iter().any(|o| o == "nosuid"), "{options:?}");
        // A mount point of the host can be removed while a pod has what was mounted on it.
        unmount(source.join("below"), UnmountFlags::DETACH).unwrap();
        fs::remove_dir(source.join("below")).unwrap();
    });
}

#[test]
fn mounts_of_the_host_follow_only_where_asked_and_never_come_back() {
    apart(|dir| {
        let pod = Pod::new(dir);
        let source = dir.join("source");
        tmpfs(&source);
        mount_change(&source, MountPropagationFlags::SHARED).unwrap();
        pod.add("private", &source, ReadOnly::No, false);
        pod.add("slave", &source, ReadOnly::No, true);
        tmpfs(&source.join("later"));
        fs::write(source.join("later/seen"), "").unwrap();
        assert!(pod.seen("slave/later/seen").exists());
        assert!(!pod.seen("private/later/seen").exists());
        // Taking the volume away leaves the host's mounts.
        pod.share.remove(Some(&pod.inside), "slave").unwrap();
        assert!(source.join("later/seen").exists());
    });
}

#[test]
fn what_is_mounted_below_keeps_a_directory_from_being_emptied() {
    apart(|dir| {
        let below = dir.join("pod/x");
        tmpfs(&below);
        tmpfs(&below);
        fs::write(below.join("precious"), "").unwrap();
        detach_all(&dir.join("pod")).unwrap();
        assert!(!below.join("precious").exists());
    });
}
