//! Sources of every kind, made in a temporary directory; what needs mounts has its lists made up.

use std::{fs, os::unix::fs::symlink, os::unix::net::UnixListener};

use tonic::Code;

use super::*;
use crate::error::Grpc as _;

fn context(handler: Handler) -> PlanContext {
    PlanContext {
        handler,
        pod_uid: "uid-1".to_owned(),
        sockets: Vec::new(),
        share: true,
    }
}

fn mount(source: &Path) -> cri::Mount {
    cri::Mount {
        container_path: "/in".to_owned(),
        host_path: source.to_str().unwrap().to_owned(),
        ..Default::default()
    }
}

fn plan_of(mount: cri::Mount, with: &PlanContext) -> Result<Volume, VolumeError> {
    let config = cri::ContainerConfig {
        mounts: vec![mount],
        ..Default::default()
    };
    inspect(&config, with).map(|mut plan| plan.volumes.remove(0))
}

#[test]
fn links_are_followed_and_what_leads_nowhere_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().canonicalize().unwrap().join("real");
    fs::create_dir(&real).unwrap();
    symlink(&real, dir.path().join("link")).unwrap();
    symlink("nowhere", dir.path().join("broken")).unwrap();
    symlink("loop", dir.path().join("loop")).unwrap();
    let kvm = context(Handler::Kvm);
    let volume = plan_of(mount(&dir.path().join("link")), &kvm).unwrap();
    assert_eq!(volume.options, ["rbind", "rprivate"]);
    match volume.kind {
        Kind::Shared(source, options) => {
            assert_eq!(source.path, real);
            assert_eq!(options.read_only, ReadOnly::No);
        }
        other => panic!("{other:?}"),
    }
    fs::write(dir.path().join("file"), "").unwrap();
    for (name, code) in [
        ("broken", Code::NotFound),
        ("broken/x", Code::NotFound),
        ("file/x", Code::InvalidArgument),
    ] {
        let error = plan_of(mount(&dir.path().join(name)), &kvm).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains("mounts[0].host_path"), "{error}");
    }
    assert!(plan_of(mount(&dir.path().join("loop")), &kvm).is_err());
    assert!(!dir.path().join("nowhere").exists());
}

#[test]
fn what_is_not_there_is_made_as_a_directory() {
    for handler in [Handler::Kvm, Handler::Host] {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        fs::create_dir(base.join("real")).unwrap();
        symlink("real", base.join("link")).unwrap();
        let with = context(handler);
        for (asked, made) in [
            ("a/b/c", "a/b/c"),
            ("link/in", "real/in"),
            ("gone/../x", "x"),
            ("slash/", "slash"),
        ] {
            let volume = plan_of(mount(&base.join(asked)), &with).unwrap();
            let Kind::Shared(source, _) = volume.kind else {
                panic!("{volume:?}")
            };
            assert_eq!(source.path, base.join(made), "{asked}");
            let meta = fs::metadata(&source.path).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::mode(&meta.permissions());
            // Subject to the umask of the test's process.
            assert!(meta.is_dir() && mode & 0o700 == 0o700, "{mode:o}");
            assert_eq!(mode & 0o022, 0, "{mode:o}");
        }
    }
}

#[test]
fn a_socket_is_never_stood_in_for_and_nothing_is_made_in_vain() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("engine.sock");
    let mut kvm = context(Handler::Kvm);
    kvm.sockets.push(path.clone());
    let error = plan_of(mount(&path), &kvm).unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    kvm.sockets.clear();
    kvm.share = false;
    assert!(plan_of(mount(&path), &kvm).is_err());
    assert!(!path.exists());
}

#[test]
fn of_mounts_and_devices_at_one_place_the_last_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().canonicalize().unwrap();
    for name in ["one", "two"] {
        fs::create_dir(base.join(name)).unwrap();
    }
    let at = |path: &str, source: &str| cri::Mount {
        container_path: path.to_owned(),
        ..mount(&base.join(source))
    };
    let image = cri::Mount {
        container_path: "image".to_owned(),
        readonly: true,
        image: Some(cri::ImageSpec {
            image: "x".to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let device = |path: &str| cri::Device {
        container_path: "/dev/x".to_owned(),
        host_path: path.to_owned(),
        permissions: "rw".to_owned(),
    };
    let config = cri::ContainerConfig {
        mounts: vec![
            at("/data", "one"),
            at("/other", "one"),
            at("data/", "two"),
            image,
        ],
        devices: vec![device("/dev/zero"), device("/dev/null")],
        ..Default::default()
    };
    let plan = inspect(&config, &context(Handler::Kvm)).unwrap();
    let volumes: Vec<_> = plan
        .volumes
        .iter()
        .map(|volume| (volume.destination.to_str().unwrap(), &volume.kind))
        .collect();
    match volumes[..] {
        [
            ("/other", Kind::Shared(..)),
            ("/data", Kind::Shared(source, _)),
            ("/image", Kind::Image(image)),
        ] => {
            assert_eq!(source.path, base.join("two"));
            // What ContainerStatus and the records go by.
            assert_eq!(image.number, 3);
        }
        _ => panic!("{volumes:?}"),
    }
    let numbers: Vec<_> = plan.devices.iter().map(|device| device.number).collect();
    assert_eq!(numbers, [(1, 3)]);
}

#[test]
fn a_config_map_is_copied_only_if_it_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("..1")).unwrap();
    fs::write(dir.path().join("..1/key"), "x").unwrap();
    symlink("..1", dir.path().join("..data")).unwrap();
    symlink("..data/key", dir.path().join("key")).unwrap();
    let read_only = cri::Mount {
        readonly: true,
        ..mount(dir.path())
    };
    let kvm = context(Handler::Kvm);
    let kind = |mount, with: &PlanContext| plan_of(mount, with).unwrap().kind;
    assert!(matches!(kind(read_only.clone(), &kvm), Kind::Copied(_)));
    assert!(matches!(kind(mount(dir.path()), &kvm), Kind::Shared(..)));
    let slave = cri::Mount {
        propagation: 1,
        ..read_only.clone()
    };
    assert!(matches!(kind(slave, &kvm), Kind::Shared(..)));
    let host = context(Handler::Host);
    assert!(matches!(kind(read_only, &host), Kind::Shared(..)));
}

#[test]
fn sockets_are_the_operators_to_allow() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().canonicalize().unwrap().join("x.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    let mut kvm = context(Handler::Kvm);
    let error = plan_of(mount(&path), &kvm).unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied);
    kvm.sockets.push(path.clone());
    let socket = plan_of(mount(&path), &kvm).unwrap();
    assert!(matches!(socket.kind, Kind::Socket(..)));
    let host = context(Handler::Host);
    assert!(matches!(
        plan_of(mount(&path), &host).unwrap().kind,
        Kind::Shared(..)
    ));
}

#[test]
fn without_a_share_only_what_needs_none_is_had() {
    let mut kvm = context(Handler::Kvm);
    kvm.share = false;
    let error = plan_of(mount(Path::new("/etc")), &kvm).unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied);
    assert!(plan_of(mount(Path::new("/dev/null")), &kvm).is_ok());
}

#[test]
fn devices_are_the_guests_own_or_none() {
    let kvm = context(Handler::Kvm);
    let null = plan_of(mount(Path::new("/dev/null")), &kvm).unwrap();
    assert!(matches!(null.kind, Kind::GuestNode(path) if path == Path::new("/dev/null")));
    let given = |path: &str| cri::ContainerConfig {
        devices: vec![cri::Device {
            container_path: "/dev/x".to_owned(),
            host_path: path.to_owned(),
            permissions: "rw".to_owned(),
        }],
        ..Default::default()
    };
    let plan = inspect(&given("/dev/null"), &kvm).unwrap();
    assert_eq!(plan.devices[0].number, (1, 3));
    let error = inspect(&given("/dev/tty"), &kvm).unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
    let error = inspect(&given("/etc"), &kvm).unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    let error = inspect(&given("/dev/not-there"), &kvm).unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
}

#[test]
fn on_the_host_it_is_a_plain_bind() {
    let host = context(Handler::Host);
    let bind = |mount| plan_of(mount, &host).unwrap().options;
    let dir = tempfile::tempdir().unwrap();
    let recursive = cri::Mount {
        readonly: true,
        recursive_read_only: true,
        ..mount(dir.path())
    };
    assert_eq!(bind(recursive), ["rbind", "rro", "rprivate"]);
    let slave = cri::Mount {
        readonly: true,
        propagation: 1,
        mount_options: vec!["noexec".to_owned()],
        ..mount(dir.path())
    };
    assert_eq!(bind(slave), ["rbind", "ro", "rslave", "noexec"]);
}

#[test]
fn an_empty_dir_in_memory_is_found_by_its_file_system() {
    let list = "\
        20 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
        30 20 0:40 / /var/lib/kubelet/pods/uid-1/volumes/kubernetes.io~empty-dir/cache rw - tmpfs tmpfs rw,size=4k\n\
        31 20 0:40 /a/b /var/lib/kubelet/pods/uid-1/volume-subpaths/cache/c/0 rw - tmpfs tmpfs rw\n\
        32 20 0:41 / /var/lib/kubelet/pods/uid-2/volumes/kubernetes.io~empty-dir/cache rw - tmpfs tmpfs rw\n\
        33 20 0:42 / /run rw - tmpfs tmpfs rw\n\
        34 20 0:43 / /x/uid-1/volumes/kubernetes.io~empty-dir/huge rw - hugetlbfs x rw,pagesize=2M\n";
    let mounts = mountinfo::parse(list.as_bytes());
    let base = "/var/lib/kubelet/pods/uid-1/volumes/kubernetes.io~empty-dir/cache";
    let found = |id, path: &str| {
        empty_dir(&mounts, id, Path::new(path), "uid-1")
            .map(|(volume, sub)| (volume.id, sub.to_str().unwrap().to_owned()))
    };
    assert_eq!(found(30, base), Some((30, String::new())));
    assert_eq!(
        found(30, &format!("{base}/x/y")),
        Some((30, "x/y".to_owned()))
    );
    let sub_path = "/var/lib/kubelet/pods/uid-1/volume-subpaths/cache/c/0";
    assert_eq!(found(31, sub_path), Some((30, "a/b".to_owned())));
    // Another pod's, another tmpfs, a disk.
    assert_eq!(found(32, &base.replace("uid-1", "uid-2")), None);
    assert_eq!(found(33, "/run/x"), None);
    assert_eq!(found(20, "/var/x"), None);
    assert_eq!(page_size(&mounts[5].super_options), Some(2 << 20));
    assert_eq!(page_size(&["pagesize=1G".to_owned()]), Some(1 << 30));
    assert_eq!(page_size(&["pagesize=1X".to_owned()]), None);
}
