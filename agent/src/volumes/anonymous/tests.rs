use std::collections::HashMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};

use rustix::fs::{FileType, XattrFlags};
use rustix::mount::MountFlags;
use rustix::thread::UnshareFlags;

use super::fixture::{Case, attributes, is_root, names};
use super::*;
use crate::report::report;
use crate::userns::Range;
use crate::volumes::remove;

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().mode() & 0o7777
}

/// Makes directories within each other.
pub(crate) fn dig(root: &Path, depth: usize) {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at = rustix::fs::open(root, flags, Mode::empty()).unwrap();
    for _ in 0..depth {
        rustix::fs::mkdirat(&at, "d", Mode::from_raw_mode(0o755)).unwrap();
        at = rustix::fs::openat(&at, "d", flags, Mode::empty()).unwrap();
    }
}

#[test]
fn without_a_directory_in_the_image_the_volume_is_empty_and_owned_by_root() {
    if !is_root() {
        return;
    }
    let case = Case::new();
    let made = case.make("/a/b").unwrap();
    assert_eq!((made.clone(), mode(&made)), (case.place(), 0o755));
    assert!(names(&made).is_empty());
    // The root is left as it is: mount points are others' to make.
    assert!(names(&case.root()).is_empty());

    let (first, gid) = (100_000, 200_000);
    let range = |first| Range {
        first,
        length: 65536,
    };
    let map = IdMap {
        uids: range(first),
        gids: range(gid),
    };
    let place = case.dir.path().join("volume-1");
    make(&case.root(), Path::new("/b"), place.clone(), Some(&map)).unwrap();
    let stat = fs::metadata(&place).unwrap();
    assert_eq!((stat.uid(), stat.gid()), (first, gid));
}

#[test]
fn links_are_followed_inside_the_root_only() {
    if !is_root() {
        return;
    }
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "").unwrap();
    let up = format!("../../../../../../../..{}", outside.path().display());
    let targets = [
        "/",
        "/proc/self/root",
        "/proc/1/root",
        "/etc",
        "/nowhere",
        &up,
    ];
    for target in targets.iter().copied().chain(outside.path().to_str()) {
        let case = Case::new();
        symlink(target, case.root().join("data")).unwrap();
        match case.make("/data") {
            Ok(made) => assert!(names(&made).is_empty(), "{target}"),
            // It is the root itself.
            Err(error) => assert!(target == "/", "{target}: {error}"),
        }
        // As a directory above it.
        let place = case.dir.path().join("volume-1");
        let made = make(&case.root(), Path::new("/data/secret"), place, None).unwrap();
        assert!(names(&made).is_empty(), "{target}");
    }
    let case = Case::new();
    fs::create_dir_all(case.root().join("var/lib/here")).unwrap();
    symlink("../../var/lib", case.root().join("data")).unwrap();
    assert_eq!(names(&case.make("/data").unwrap()), ["here"]);
}

#[test]
fn a_file_at_its_path_is_an_error_that_names_it() {
    let case = Case::new();
    fs::write(case.root().join("file"), "").unwrap();
    rustix::fs::mknodat(CWD, case.root().join("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    symlink("file", case.root().join("link")).unwrap();
    for path in ["/file", "/fifo", "/link", "/file/x", "/link/x/y"] {
        let error = case.make(path).unwrap_err();
        assert!(matches!(
            error,
            VolumeError::Anonymous(AnonymousError::NoDirectory { .. })
        ));
        let text = report(&error);
        assert!(text.contains(path) && text.contains("file"), "{text}");
    }
    symlink("loop", case.root().join("loop")).unwrap();
    assert!(
        case.make("/loop")
            .unwrap_err()
            .to_string()
            .contains("/loop")
    );
    for root in ["/", "/.", "/file/..", "/.."] {
        assert!(case.make(root).is_err(), "{root}");
    }
}

#[test]
fn a_tree_deeper_than_path_max_and_open_files_is_copied() {
    let case = Case::new();
    let data = case.root().join("data");
    fs::create_dir(&data).unwrap();
    dig(&data, 5000);
    let made = case.make("/data").unwrap();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at = rustix::fs::open(&made, flags, Mode::empty()).unwrap();
    let mut depth = 0;
    while let Ok(below) = rustix::fs::openat(&at, "d", flags, Mode::empty()) {
        at = below;
        depth += 1;
    }
    assert_eq!(depth, 5000);
    assert_eq!(names(case.dir.path()), ["root", "volume-0"]);
}

#[test]
fn trees_beyond_the_limits_are_refused() {
    let case = Case::new();
    let data = case.root().join("data");
    fs::create_dir(&data).unwrap();
    dig(&data, 20);
    for name in ["x", "y", "z"] {
        fs::create_dir(data.join(name)).unwrap();
    }
    let most = Limits {
        entries: 23,
        depth: 20,
        names: 4,
    };
    let limits = [
        (most, None),
        (
            Limits {
                entries: 22,
                ..most
            },
            Some("22 files"),
        ),
        (Limits { depth: 19, ..most }, Some("19 directories within")),
        (
            Limits { names: 3, ..most },
            Some("3 bytes of directories' names"),
        ),
    ];
    for (number, (limits, words)) in limits.into_iter().enumerate() {
        let place = case.dir.path().join(format!("copy-{number}"));
        let links = new_directory(&case.dir.path().join(format!("links-{number}"))).unwrap();
        let source = find(&case.root(), Path::new("/data")).unwrap().unwrap();
        let copy = new_directory(&place).unwrap();
        let result = tree::copy(source, copy, links.as_fd(), limits);
        match (result, words) {
            (Ok(()), None) => {}
            (Err(error), Some(words)) => {
                assert!(report(&error).contains(words), "{error}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_sparse_file_stays_sparse() {
    let case = Case::new();
    fs::create_dir(case.root().join("data")).unwrap();
    let file = File::create(case.root().join("data/sparse")).unwrap();
    file.set_len(8 << 30).unwrap();
    file.write_all_at(b"begin", 3).unwrap();
    file.write_all_at(b"end", (5 << 30) - 1).unwrap();
    // Written, and still nothing but zeros.
    let zeros = File::create(case.root().join("data/zeros")).unwrap();
    zeros.write_all_at(&vec![0; 3 << 20], 0).unwrap();
    zeros.write_all_at(b"x", (1 << 20) + 17).unwrap();
    let made = case.make("/data").unwrap();
    let copy = File::open(made.join("sparse")).unwrap();
    let stat = copy.metadata().unwrap();
    assert_eq!(stat.len(), 8 << 30);
    assert!(stat.blocks() * 512 < 1 << 20, "{} blocks", stat.blocks());
    let mut read = [1; 5];
    copy.read_exact_at(&mut read, 3).unwrap();
    assert_eq!(&read, b"begin");
    copy.read_exact_at(&mut read, (5 << 30) - 2).unwrap();
    assert_eq!(&read, b"\0end\0");
    assert!(fs::metadata(made.join("zeros")).unwrap().blocks() * 512 < 1 << 20);
    assert_eq!(
        fs::read(made.join("zeros")).unwrap(),
        fs::read(case.root().join("data/zeros")).unwrap()
    );
}

#[test]
fn as_many_hard_links_as_a_file_can_have_are_kept() {
    let case = Case::new();
    let data = case.root().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("0"), "x").unwrap();
    // ext4 has 65,000 at most, other file systems more.
    let names = 65_000;
    for name in 1..names {
        fs::hard_link(data.join("0"), data.join(name.to_string())).unwrap();
    }
    let made = case.make("/data").unwrap();
    let mut inodes = HashMap::new();
    for entry in fs::read_dir(&made).unwrap() {
        let stat = entry.unwrap().metadata().unwrap();
        assert_eq!(stat.len(), 1);
        *inodes.entry(stat.ino()).or_insert(0) += 1;
    }
    assert_eq!(inodes.values().sum::<u32>(), names);
    assert!(inodes.len() <= 2);
}

#[test]
fn owners_capabilities_and_devices_are_kept_and_overlayfs_attributes_are_not() {
    if !is_root() {
        return;
    }
    let case = Case::new();
    let data = case.root().join("data");
    fs::create_dir(&data).unwrap();
    let program = data.join("program");
    fs::write(&program, "x").unwrap();
    std::os::unix::fs::chown(&program, Some(5), Some(6)).unwrap();
    std::os::unix::fs::chown(&data, Some(999), Some(998)).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o3770)).unwrap();
    // linux/capability.h: version 2, effective, CAP_NET_BIND_SERVICE permitted.
    let mut capability = [0u8; 20];
    capability[..8].copy_from_slice(&[1, 0, 0, 2, 0, 4, 0, 0]);
    let set = |path: &Path, name: &str, value: &[u8]| {
        rustix::fs::setxattr(path, name, value, XattrFlags::empty()).unwrap();
    };
    set(&program, "security.capability", &capability);
    set(&program, "trusted.overlay.redirect", b"/etc");
    set(&data, "trusted.overlay.opaque", b"y");
    set(&data, "user.kept", b"value");
    let null = data.join("null");
    rustix::fs::mknodat(
        CWD,
        &null,
        FileType::CharacterDevice,
        Mode::from_raw_mode(0o666),
        0x103,
    )
    .unwrap();
    fs::set_permissions(&null, fs::Permissions::from_mode(0o642)).unwrap();
    std::os::unix::fs::lchown(&null, Some(7), Some(8)).unwrap();

    let made = case.make("/data").unwrap();
    let stat = fs::metadata(&made).unwrap();
    assert_eq!((stat.uid(), stat.gid(), mode(&made)), (999, 998, 0o3770));
    assert_eq!(
        attributes(&made),
        [("user.kept".into(), b"value".to_vec())].into()
    );
    let stat = fs::metadata(made.join("program")).unwrap();
    assert_eq!((stat.uid(), stat.gid()), (5, 6));
    assert_eq!(
        attributes(&made.join("program")),
        [("security.capability".into(), capability.to_vec())].into()
    );
    let stat = fs::metadata(made.join("null")).unwrap();
    assert!(stat.file_type().is_char_device());
    assert_eq!((stat.rdev(), stat.uid(), stat.gid()), (0x103, 7, 8));
    assert_eq!(mode(&made.join("null")), 0o642);
}

/// Runs in a mount namespace of its own.
fn among_own_mounts(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        // SAFETY: only CLONE_FILES could make descriptors invalid; NEWNS gives this thread a root, a
        // working directory and mounts of its own.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
        let flags = rustix::mount::MountPropagationFlags::PRIVATE
            | rustix::mount::MountPropagationFlags::REC;
        rustix::mount::mount_change("/", flags).unwrap();
        test();
    });
    thread.join().unwrap();
}

#[test]
fn a_full_disk_is_reported_as_such() {
    if !is_root() {
        return;
    }
    among_own_mounts(|| {
        let case = Case::new();
        let scratch = case.dir.path().join("scratch");
        fs::create_dir(&scratch).unwrap();
        let options = Some(c"size=1m,nr_inodes=100");
        rustix::mount::mount("tmpfs", &scratch, "tmpfs", MountFlags::empty(), options).unwrap();
        let (big, many) = (case.root().join("big"), case.root().join("many"));
        fs::create_dir(&big).unwrap();
        fs::write(big.join("content"), vec![7; 2 << 20]).unwrap();
        fs::create_dir(&many).unwrap();
        for number in 0..200 {
            fs::write(many.join(number.to_string()), "").unwrap();
        }
        for path in ["/big", "/many"] {
            let place = scratch.join("volume-0");
            let error = make(&case.root(), Path::new(path), place.clone(), None).unwrap_err();
            let text = report(&error);
            assert!(
                matches!(error, VolumeError::Anonymous(AnonymousError::Full { .. })),
                "{text}"
            );
            assert!(
                text.contains(path) && text.contains("scratch disk is full"),
                "{text}"
            );
            for left in fs::read_dir(&scratch).unwrap() {
                remove::tree(&left.unwrap().path()).unwrap();
            }
        }
    });
}

#[test]
fn a_mount_in_the_root_is_not_entered_and_an_overlay_on_the_copy_works() {
    if !is_root() {
        return;
    }
    among_own_mounts(|| {
        let case = Case::new();
        let (data, lower) = (case.root().join("data"), case.dir.path().join("lower"));
        fs::create_dir_all(data.join("mounted")).unwrap();
        fs::create_dir(&lower).unwrap();
        rustix::mount::mount_bind("/etc", data.join("mounted")).unwrap();
        assert!(case.make("/data/mounted").is_err());
        assert!(case.make("/data").is_err());
        rustix::mount::unmount(data.join("mounted"), rustix::mount::UnmountFlags::DETACH).unwrap();

        let made = make(
            &case.root(),
            Path::new("/data"),
            case.dir.path().join("v"),
            None,
        )
        .unwrap();
        fs::create_dir(made.join("upper")).unwrap();
        fs::create_dir(made.join("work")).unwrap();
        let merged = case.dir.path().join("merged");
        fs::create_dir(&merged).unwrap();
        let options = CString::new(format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            made.join("upper").display(),
            made.join("work").display()
        ));
        let options = options.unwrap();
        let options = Some(options.as_c_str());
        rustix::mount::mount("overlay", &merged, "overlay", MountFlags::empty(), options).unwrap();
    });
}

#[test]
fn stacked_layers_are_copied_as_the_merged_view() {
    if !is_root() {
        return;
    }
    among_own_mounts(|| {
        let case = Case::new();
        let rootfs = crate::container::rootfs::Rootfs {
            target: case.root(),
            scratch: case.dir.path().join("scratch"),
        };
        let layers = ["low", "high"].map(|name| case.dir.path().join(name));
        let [low, high] = layers.each_ref().map(|layer| layer.join("data"));
        for data in [&low, &high] {
            fs::create_dir_all(data.join("both")).unwrap();
        }
        for name in ["one", "gone"] {
            fs::write(low.join(name), name).unwrap();
        }
        fs::write(low.join("both/low"), "").unwrap();
        fs::write(high.join("both/high"), "").unwrap();
        fs::hard_link(low.join("one"), low.join("both/two")).unwrap();
        // overlayfs's whiteout: a file that was removed.
        let gone = high.join("gone");
        rustix::fs::mknodat(CWD, gone, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        rootfs.mount(&layers).unwrap();

        let place = rootfs.scratch.join("volume-0");
        let made = make(&case.root(), Path::new("/data"), place, None).unwrap();
        assert_eq!(names(&made), ["both", "one"]);
        assert_eq!(names(&made.join("both")), ["high", "low", "two"]);
        let inode = |path| fs::metadata(made.join(path)).unwrap().ino();
        assert_eq!(inode("one"), inode("both/two"));
        assert_eq!(fs::read(made.join("one")).unwrap(), b"one");
        assert!(attributes(&made.join("both")).is_empty());
        // Looking has not written anything.
        assert!(names(&rootfs.upper()).is_empty());
        rootfs.unmount().unwrap();
    });
}
