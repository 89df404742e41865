//! What a container's config becomes, case by case.
#![allow(deprecated)] // Fields older clients still set.

use tonic::Code;

use super::*;
use crate::{error::Grpc as _, oci::host_devices};

fn config() -> cri::ContainerConfig {
    cri::ContainerConfig {
        command: vec!["/bin/true".into()],
        linux: Some(cri::LinuxContainerConfig::default()),
        ..Default::default()
    }
}

fn plan(config: &cri::ContainerConfig) -> Result<Plan, OciError> {
    plan_on(config, Kernel::Guest)
}

fn plan_on(config: &cri::ContainerConfig, kernel: Kernel) -> Result<Plan, OciError> {
    let sandbox = cri::PodSandboxConfig {
        hostname: "pod".into(),
        ..Default::default()
    };
    build(Input {
        volumes: &Default::default(),
        config,
        sandbox: &sandbox,
        image: &ImageProcess::default(),
        localhost_seccomp: None,
        kernel,
    })
}

#[test]
fn volumes_take_the_places_of_default_mounts_and_lie_in_order() {
    let volume = |at: &str| volumes::Volume {
        destination: at.into(),
        options: vec!["rbind".to_owned(), "ro".to_owned()],
        kind: volumes::Kind::GuestNode("/dev/null".into()),
    };
    let build = |at: &[&str]| {
        let plan = volumes::Plan {
            volumes: at.iter().map(|at| volume(at)).collect(),
            ..Default::default()
        };
        mounts::all(false, false, &plan).unwrap()
    };
    let mounts = build(&["/a/b/c", "/etc/hosts", "/a", "/dev/shm", "/a/b"]);
    let at = |path: &str| {
        let found: Vec<_> = mounts
            .iter()
            .enumerate()
            .filter(|(_, mount)| mount.destination() == std::path::Path::new(path))
            .collect();
        assert_eq!(found.len(), 1, "{path}");
        found[0]
    };
    assert!(at("/a").0 < at("/a/b").0 && at("/a/b").0 < at("/a/b/c").0);
    assert!(at("/dev").0 < at("/dev/shm").0);
    for path in ["/etc/hosts", "/dev/shm"] {
        assert_eq!(at(path).1.source().as_deref(), Some("/dev/null".as_ref()));
    }
    assert!(at("/etc/hostname").1.source() != at("/etc/hosts").1.source());
    let below = build(&["/dev"]);
    let in_dev = |mount: &&oci_spec::runtime::Mount| mount.destination().starts_with("/dev");
    assert_eq!(below.iter().filter(in_dev).count(), 1);
}

#[test]
fn a_mounted_dev_is_left_as_it_is() {
    let dev = volumes::Plan {
        volumes: vec![volumes::Volume {
            destination: "/dev".into(),
            options: Vec::new(),
            kind: volumes::Kind::GuestNode("/dev".into()),
        }],
        ..Default::default()
    };
    assert!(mounts::devices(true, &dev).unwrap().is_empty());
    let config = context(|c| c.privileged = true);
    let build = |volumes: &volumes::Plan| {
        let input = Input {
            volumes,
            config: &config,
            sandbox: &cri::PodSandboxConfig::default(),
            image: &ImageProcess::default(),
            localhost_seccomp: None,
            kernel: Kernel::Guest,
        };
        let mut plan = build(input).unwrap();
        host_devices::give_all(&mut plan).unwrap();
        let linux = plan.spec.linux().clone().unwrap();
        linux.devices().clone().unwrap_or_default().len()
    };
    assert_eq!(build(&dev), 0);
    assert!(build(&volumes::Plan::default()) > 0);
}

#[test]
fn an_images_volumes_are_mounts_among_the_others() {
    let mut plan = volumes::Plan::default();
    let paths = ["/a/b/c", "/a", "/etc"].map(str::to_owned);
    volumes::add_anonymous(&mut plan, &paths).unwrap();
    for readonly in [false, true] {
        let mounts = mounts::all(false, readonly, &plan).unwrap();
        let at = |path: &str| {
            let is_there = |mount: &oci_spec::runtime::Mount| {
                mount.destination() == std::path::Path::new(path)
            };
            mounts.iter().position(is_there).unwrap()
        };
        assert!(at("/a") < at("/a/b/c") && at("/etc") < at("/etc/hosts"));
        let volume = &mounts[at("/a")];
        assert_eq!(volume.typ().as_deref(), Some("bind"));
        let options = volume.options().clone().unwrap();
        assert_eq!(options, ["rbind", "rw", "rprivate"]);
    }
}

#[test]
fn a_given_device_has_a_node_and_a_rule() {
    let given = volumes::Plan {
        devices: vec![volumes::GuestDevice {
            destination: "/dev/fuse".into(),
            block: false,
            number: (10, 229),
            permissions: "rw".to_owned(),
            ownership: volumes::snapshot::Ownership {
                mode: 0o666,
                uid: 1,
                gid: 2,
            },
        }],
        ..Default::default()
    };
    for privileged in [false, true] {
        let nodes = mounts::devices(privileged, &given).unwrap();
        let fuse: Vec<_> = nodes
            .iter()
            .filter(|node| node.path() == std::path::Path::new("/dev/fuse"))
            .collect();
        assert_eq!(fuse.len(), 1);
        assert_eq!((fuse[0].uid(), fuse[0].gid()), (Some(1), Some(2)));
    }
    let rules = mounts::device_rules(&given).unwrap();
    assert_eq!(rules[0].access().as_deref(), Some("rw"));
}

fn context(change: impl FnOnce(&mut cri::LinuxContainerSecurityContext)) -> cri::ContainerConfig {
    let mut config = config();
    let mut context = cri::LinuxContainerSecurityContext::default();
    change(&mut context);
    config.linux.as_mut().unwrap().security_context = Some(context);
    config
}

#[test]
fn a_plain_container() {
    let plan = plan(&config()).unwrap();
    let process = plan.spec.process().as_ref().unwrap();
    assert_eq!(process.args().as_ref().unwrap(), &["/bin/true"]);
    assert_eq!(process.cwd().to_str(), Some("/"));
    assert_eq!(process.no_new_privileges(), Some(false));
    let linux = plan.spec.linux().as_ref().unwrap();
    assert!(linux.seccomp().is_none(), "nothing said is unconfined");
    assert!(linux.masked_paths().as_ref().unwrap().is_empty());
    let kinds: Vec<_> = linux
        .namespaces()
        .iter()
        .flatten()
        .map(|ns| ns.typ())
        .collect();
    assert!(
        !kinds.contains(&LinuxNamespaceType::Network) && !kinds.contains(&LinuxNamespaceType::Uts)
    );
    assert_eq!(plan.pid_mode, agent::PidMode::Pod);
    assert_eq!(plan.stop_signal, signal::SIGTERM);
    let sys = plan
        .spec
        .mounts()
        .iter()
        .flatten()
        .find(|m| m.destination().to_str() == Some("/sys"));
    assert!(sys.unwrap().options().iter().flatten().any(|o| o == "ro"));
    // The agent reads this very text.
    let again: Spec = serde_json::from_slice(&plan.spec_json().unwrap()).unwrap();
    assert_eq!(again, plan.spec);
}

#[test]
fn privileged_is_privileged_in_the_guest() {
    let plan = plan(&context(|c| {
        c.privileged = true;
        c.seccomp = Some(cri::SecurityProfile::default());
        c.masked_paths = vec!["/proc/kcore".into()];
        c.readonly_paths = vec!["/proc/sys".into()];
    }))
    .unwrap();
    let linux = plan.spec.linux().as_ref().unwrap();
    assert!(linux.seccomp().is_none());
    assert!(linux.masked_paths().as_ref().unwrap().is_empty());
    for node in ["/dev/fuse", "/dev/mapper/control", "/dev/btrfs-control"] {
        let mut nodes = linux.devices().iter().flatten();
        assert!(nodes.any(|d| d.path().to_str() == Some(node)), "{node}");
    }
    let rules = linux
        .resources()
        .as_ref()
        .unwrap()
        .devices()
        .as_ref()
        .unwrap();
    assert!(rules[0].allow());
    let caps = plan
        .spec
        .process()
        .as_ref()
        .unwrap()
        .capabilities()
        .as_ref()
        .unwrap();
    assert_eq!(caps.effective().as_ref().unwrap().len(), 41);
}

#[test]
fn masked_and_read_only() {
    let plan = plan(&context(|c| {
        c.masked_paths = vec!["/proc/kcore".into()];
        c.readonly_rootfs = true;
        c.no_new_privs = true;
        c.seccomp = Some(cri::SecurityProfile::default());
    }))
    .unwrap();
    let linux = plan.spec.linux().as_ref().unwrap();
    assert_eq!(linux.masked_paths().as_ref().unwrap(), &["/proc/kcore"]);
    assert!(linux.seccomp().is_some());
    assert_eq!(plan.spec.root().as_ref().unwrap().readonly(), Some(true));
    let hosts = plan
        .spec
        .mounts()
        .iter()
        .flatten()
        .find(|m| m.destination().to_str() == Some("/etc/hosts"));
    assert!(hosts.unwrap().options().iter().flatten().any(|o| o == "ro"));
}

#[test]
fn pid_namespaces() {
    for (mode, expected) in [
        (cri::NamespaceMode::Pod, agent::PidMode::Pod),
        (cri::NamespaceMode::Container, agent::PidMode::Container),
        (cri::NamespaceMode::Node, agent::PidMode::Node),
        (cri::NamespaceMode::Target, agent::PidMode::Target),
    ] {
        let options = cri::NamespaceOption {
            pid: mode as i32,
            target_id: "abc".into(),
            ..Default::default()
        };
        let plan = plan(&context(|c| c.namespace_options = Some(options))).unwrap();
        assert_eq!(plan.pid_mode, expected);
        let linux = plan.spec.linux().as_ref().unwrap();
        let own = linux
            .namespaces()
            .iter()
            .flatten()
            .any(|n| n.typ() == LinuxNamespaceType::Pid);
        assert_eq!(own, mode == cri::NamespaceMode::Container);
    }
    let options = cri::NamespaceOption {
        pid: 3,
        ..Default::default()
    };
    assert!(plan(&context(|c| c.namespace_options = Some(options))).is_err());
}

#[test]
fn an_apparmor_profile_is_named_to_the_guest() {
    let named = |change: fn(&mut cri::LinuxContainerSecurityContext)| {
        let spec = plan(&context(change)).unwrap().spec;
        let process = spec.process().clone().unwrap();
        process.apparmor_profile().clone()
    };
    let new = named(|c| {
        c.apparmor = Some(cri::SecurityProfile {
            profile_type: 2,
            localhost_ref: "aa".into(),
        });
    });
    assert_eq!(new.as_deref(), Some("aa"));
    let old = named(|c| c.apparmor_profile = "localhost/bb".into());
    assert_eq!(old.as_deref(), Some("bb"));
    assert_eq!(named(|_| {}), None);
}

#[test]
fn on_the_node_the_default_profile_confines_all_but_the_unconfined() {
    let profile = |change: fn(&mut cri::LinuxContainerSecurityContext), apparmor| {
        let kernel = Kernel::Node {
            io_uring: false,
            apparmor,
        };
        let spec = plan_on(&context(change), kernel).unwrap().spec;
        let process = spec.process().clone().unwrap();
        process.apparmor_profile().clone()
    };
    let default = Some(apparmor::DEFAULT.to_owned());
    assert_eq!(profile(|_| {}, true), default);
    assert_eq!(profile(|_| {}, false), None);
    let runtime_default: fn(&mut cri::LinuxContainerSecurityContext) =
        |c| c.apparmor = Some(cri::SecurityProfile::default());
    assert_eq!(profile(runtime_default, true), default);
    assert_eq!(
        profile(|c| c.apparmor_profile = "runtime/default".into(), true),
        default
    );
    assert_eq!(
        profile(|c| c.apparmor_profile = "unconfined".into(), true),
        None
    );
    assert_eq!(profile(|c| c.privileged = true, true), None);
    assert_eq!(
        profile(|c| c.apparmor_profile = "localhost/bb".into(), true).as_deref(),
        Some("bb")
    );
}

#[test]
fn on_the_node_no_filter_is_one_against_io_uring() {
    let filter = |change: fn(&mut cri::LinuxContainerSecurityContext), kernel| {
        let spec = plan_on(&context(change), kernel).unwrap().spec;
        spec.linux().as_ref().unwrap().seccomp().clone()
    };
    let node = |io_uring| Kernel::Node {
        io_uring,
        apparmor: false,
    };
    let small = filter(|_| {}, node(false)).unwrap();
    assert_eq!(small, seccomp::without_io_uring().unwrap());
    assert_eq!(filter(|_| {}, node(true)), None);
    assert_eq!(filter(|_| {}, Kernel::Guest), None);
    assert_eq!(filter(|c| c.privileged = true, node(false)), None);
    let default = filter(
        |c| c.seccomp = Some(cri::SecurityProfile::default()),
        node(false),
    );
    assert!(default.unwrap().default_action() != small.default_action());
}

#[test]
fn what_is_not_done_is_said() {
    let mut cases = Vec::new();
    let mut with = config();
    with.cdi_devices = vec![cri::CdiDevice {
        name: "v/c=0".into(),
    }];
    cases.push((with, Code::Unimplemented, "v/c=0"));
    cases.push((
        context(|c| c.run_as_group = Some(cri::Int64Value { value: 7 })),
        Code::InvalidArgument,
        "run_as_group",
    ));
    let mut with = config();
    with.command.clear();
    cases.push((with, Code::InvalidArgument, "command"));
    let mut with = config();
    with.linux.as_mut().unwrap().resources = Some(cri::LinuxContainerResources {
        oom_score_adj: 1001,
        ..Default::default()
    });
    cases.push((with, Code::InvalidArgument, "oom_score_adj"));
    for (config, code, word) in cases {
        let error = plan(&config).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(
            error.to_string().contains(word),
            "{error} does not name {word}"
        );
    }
}
