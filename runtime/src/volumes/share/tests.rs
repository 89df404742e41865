//! In a mount namespace of the test's own: needs root, else it says that it was skipped.

use std::{fs, path::Path};

use nix::sched::CloneFlags;

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

fn share(dir: &Path) -> Share {
    let pod = dir.join("pod");
    fs::create_dir_all(pod.join("vm")).unwrap();
    let share = Share::of_pod(&pod);
    share.create().unwrap();
    share
}

fn add(share: &Share, name: &str, source: &Path, read_only: ReadOnly, follows_host: bool) {
    let source = rustix::fs::open(source, OFlags::PATH, Mode::empty()).unwrap();
    let manner = Manner {
        read_only,
        follows_host,
    };
    share.add(name, source.as_fd(), manner).unwrap();
}

#[test]
fn directories_and_files_are_shown_and_taken_away() {
    apart(|dir| {
        let share = share(dir);
        let source = dir.join("source");
        fs::create_dir(&source).unwrap();
        fs::write(source.join("file"), "1").unwrap();
        add(&share, "d", &source, ReadOnly::No, false);
        add(&share, "d", &source, ReadOnly::No, false);
        add(&share, "f", &source.join("file"), ReadOnly::No, false);
        assert_eq!(fs::read(share.root().join("d/file")).unwrap(), b"1");
        fs::write(share.root().join("f"), "2").unwrap();
        assert_eq!(fs::read(source.join("file")).unwrap(), b"2");
        let error = fs::write(share.root().join("own"), "").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
        share.remove("d").unwrap();
        share.remove("d").unwrap();
        assert!(!share.root().join("d").exists() && source.join("file").exists());
        share.destroy().unwrap();
        share.destroy().unwrap();
        assert!(
            !share.root().join("f").exists()
                || fs::read(share.root().join("f")).unwrap().is_empty()
        );
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
        let share = share(dir);
        let source = dir.join("source");
        tmpfs(&source);
        tmpfs(&source.join("below"));
        add(&share, "top", &source, ReadOnly::Top, false);
        add(&share, "all", &source, ReadOnly::Recursive, false);
        let at = |path: &str| fs::write(share.root().join(path), "x").map_err(|e| e.kind());
        let refused = Err(io::ErrorKind::ReadOnlyFilesystem);
        assert_eq!(at("top/x"), refused);
        assert_eq!(at("top/below/x"), Ok(()));
        assert_eq!(at("all/x"), refused);
        assert_eq!(at("all/below/x"), refused);
        // The source stays as it is, and so do the flags it has.
        fs::write(source.join("y"), "").unwrap();
        let all = mounts().unwrap();
        let seen = all
            .iter()
            .find(|m| m.mount_point.ends_with("share/all"))
            .unwrap();
        assert!(seen.options.iter().any(|o| o == "nosuid"), "{seen:?}");
    });
}

#[test]
fn mounts_of_the_host_follow_only_where_asked_and_never_come_back() {
    apart(|dir| {
        let share = share(dir);
        let source = dir.join("source");
        tmpfs(&source);
        mount_change(&source, MountPropagationFlags::SHARED).unwrap();
        add(&share, "private", &source, ReadOnly::No, false);
        add(&share, "slave", &source, ReadOnly::No, true);
        tmpfs(&source.join("later"));
        fs::write(source.join("later/seen"), "").unwrap();
        assert!(share.root().join("slave/later/seen").exists());
        assert!(!share.root().join("private/later/seen").exists());
        tmpfs(&share.root().join("slave/back"));
        fs::write(share.root().join("slave/back/x"), "").unwrap();
        assert!(!source.join("back/x").exists());
        // Taking the volume away leaves the host's mounts.
        share.remove("slave").unwrap();
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
