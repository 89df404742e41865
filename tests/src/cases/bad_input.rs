//! Wrong requests and broken nodes: a clear error with the right code, in bounded time, and
//! nothing left.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, time::Instant};

use bulkhead_proto::cri::{
    AttachRequest, CheckpointContainerRequest, CheckpointPodRequest, ContainerConfig,
    ContainerStatsRequest, ContainerStatusRequest, ExecRequest, Int64Value,
    LinuxContainerResources, NamespaceMode, NamespaceOption, PodSandboxStatsRequest,
    PodSandboxStatusRequest, PortForwardRequest, ReopenContainerLogRequest, RestorePodRequest,
    RunPodSandboxRequest, UpdateContainerResourcesRequest,
};
use tonic::{Code, Status};

use super::{BUSYBOX, image, logs};
use crate::{
    Failure, Outcome, check,
    cri::{container, pod, script},
    host::{Host, Options},
    leaks::{self, Snapshot},
    suite::{Context, LIMIT, Test},
    test,
};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!("bad_input", unknown_ids),
        test!("bad_input", containers_that_cannot_be),
        test!("bad_input", pods_that_cannot_be),
        test!("bad_input", what_is_not_there_says_unimplemented),
        test!("bad_input", guests_that_do_not_come_up, LIMIT * 2),
        test!("bad_input", a_full_disk),
    ]
}

/// That the answer is an error of one of these codes.
fn refused<T: std::fmt::Debug>(
    what: &str,
    answer: Result<T, Status>,
    codes: &[Code],
) -> Result<Status, Failure> {
    match answer {
        Err(status) if codes.contains(&status.code()) && !status.message().is_empty() => Ok(status),
        other => Err(format!("{what}: expected {codes:?}, got {other:?}").into()),
    }
}

async fn unknown_ids(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    let mut runtime = cri.runtime.clone();
    for id in ["0".repeat(32), "../../etc".to_owned(), "x".repeat(5000)] {
        cri.stop(&id, 1).await?;
        cri.remove(&id).await?;
        cri.remove_pod(&id).await?;
        let absent = [Code::NotFound, Code::InvalidArgument];
        refused("StartContainer", cri.start(&id).await, &absent)?;
        refused("ExecSync", cri.exec(&id, &["true"]).await, &absent)?;
        let request = ContainerStatusRequest {
            container_id: id.clone(),
            verbose: true,
        };
        refused(
            "ContainerStatus",
            runtime.container_status(request).await,
            &absent,
        )?;
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: id.clone(),
            verbose: true,
        };
        refused(
            "PodSandboxStatus",
            runtime.pod_sandbox_status(request).await,
            &absent,
        )?;
        let request = ContainerStatsRequest {
            container_id: id.clone(),
        };
        refused(
            "ContainerStats",
            runtime.container_stats(request).await,
            &absent,
        )?;
        let request = ReopenContainerLogRequest {
            container_id: id.clone(),
        };
        refused(
            "ReopenContainerLog",
            runtime.reopen_container_log(request).await,
            &absent,
        )?;
        let request = UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(LinuxContainerResources::default()),
            ..UpdateContainerResourcesRequest::default()
        };
        let answer = runtime.update_container_resources(request).await;
        refused("UpdateContainerResources", answer, &absent)?;
        let request = ExecRequest {
            container_id: id.clone(),
            cmd: vec!["true".to_owned()],
            stdout: true,
            ..ExecRequest::default()
        };
        refused("Exec", runtime.exec(request).await, &absent)?;
        let request = AttachRequest {
            container_id: id.clone(),
            stdout: true,
            ..AttachRequest::default()
        };
        refused("Attach", runtime.attach(request).await, &absent)?;
        let request = PortForwardRequest {
            pod_sandbox_id: id.clone(),
            port: vec![80],
        };
        refused("PortForward", runtime.port_forward(request).await, &absent)?;
        let request = PodSandboxStatsRequest {
            pod_sandbox_id: id.clone(),
        };
        let answer = runtime.pod_sandbox_stats(request).await;
        refused("PodSandboxStats", answer, &absent)?;
        let answer = cri
            .create(&id, &pod("none"), script("x", BUSYBOX, "true"))
            .await;
        refused("CreateContainer", answer, &absent)?;
    }
    Ok(())
}

async fn containers_that_cannot_be(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let config = logs::logging_pod(context, "refusals").0;
    let id = cri.run_pod(config.clone()).await?;
    let plain = || script("refused", BUSYBOX, "true");
    let mut group_alone = plain();
    let security = group_alone
        .linux
        .get_or_insert_default()
        .security_context
        .get_or_insert_default();
    security.run_as_group = Some(Int64Value { value: 5 });
    let mut negative = plain();
    let security = negative
        .linux
        .get_or_insert_default()
        .security_context
        .get_or_insert_default();
    security.run_as_user = Some(Int64Value { value: -5 });
    let mut limit = plain();
    limit
        .linux
        .get_or_insert_default()
        .resources
        .get_or_insert_default()
        .memory_limit_in_bytes = -7;
    let invalid = [Code::InvalidArgument];
    for (what, config_of, codes) in [
        (
            "a missing image",
            script("m", "127.0.0.1:5000/not/pulled:1", "true"),
            &[Code::NotFound][..],
        ),
        ("a group without a user", group_alone, &invalid),
        ("a negative user", negative, &invalid),
        ("a negative limit", limit, &invalid),
        (
            "no metadata",
            ContainerConfig {
                metadata: None,
                ..plain()
            },
            &invalid,
        ),
        (
            "no image",
            ContainerConfig {
                image: None,
                ..plain()
            },
            &[Code::InvalidArgument, Code::NotFound],
        ),
        (
            "a log path that climbs",
            ContainerConfig {
                log_path: "../../x.log".to_owned(),
                ..plain()
            },
            &invalid,
        ),
    ] {
        refused(what, cri.create(&id, &config, config_of).await, codes)?;
    }
    // What is wrong may show at create or at start; the container can be removed either way.
    for (what, command, codes) in [
        (
            "a missing command",
            &["/no/such/program"][..],
            &[Code::NotFound, Code::InvalidArgument][..],
        ),
        (
            "a missing command on PATH",
            &["nosuchprogram"],
            &[Code::NotFound, Code::InvalidArgument],
        ),
        (
            "a file that is no program",
            &["/etc/passwd"],
            &[Code::PermissionDenied, Code::InvalidArgument],
        ),
        (
            "a directory",
            &["/etc"],
            &[Code::PermissionDenied, Code::InvalidArgument],
        ),
    ] {
        match cri
            .create(&id, &config, container("bad", BUSYBOX, command))
            .await
        {
            Ok(made) => {
                let status = refused(what, cri.start(&made).await, codes)?;
                check!(status.message().contains(command[0]), "{what}: {status:?}");
                cri.remove(&made).await?;
            }
            answer => {
                let status = refused(what, answer, codes)?;
                check!(status.message().contains(command[0]), "{what}: {status:?}");
            }
        }
    }
    let made = cri
        .create(&id, &config, script("twice", BUSYBOX, "sleep 1000"))
        .await?;
    let again = cri
        .create(&id, &config, script("twice", BUSYBOX, "sleep 1000"))
        .await;
    refused("the same name again", again, &[Code::AlreadyExists])?;
    cri.start(&made).await?;
    refused(
        "a second start",
        cri.start(&made).await,
        &[Code::FailedPrecondition],
    )?;
    cri.stop(&made, 0).await?;
    cri.stop(&made, 0).await?;
    refused(
        "a start after the stop",
        cri.start(&made).await,
        &[Code::FailedPrecondition],
    )?;
    cri.stop_pod(&id).await?;
    let late = cri
        .create(&id, &config, script("late", BUSYBOX, "true"))
        .await;
    refused(
        "a container in a dead pod",
        late,
        &[Code::FailedPrecondition],
    )?;
    Ok(cri.remove_pod(&id).await?)
}

async fn pods_that_cannot_be(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    let mut runtime = cri.runtime.clone();
    let codes = [Code::InvalidArgument, Code::NotFound];
    let request = RunPodSandboxRequest {
        config: Some(pod("h")),
        runtime_handler: "nosuch".to_owned(),
    };
    refused(
        "an unknown handler",
        runtime.run_pod_sandbox(request).await,
        &codes,
    )?;
    let request = RunPodSandboxRequest {
        config: None,
        runtime_handler: String::new(),
    };
    refused(
        "no configuration",
        runtime.run_pod_sandbox(request).await,
        &codes,
    )?;
    let mut nameless = pod("n");
    nameless.metadata = None;
    refused("no metadata", cri.run_pod(nameless).await, &codes)?;
    let mut host_network = pod("hostnet");
    let linux = host_network.linux.get_or_insert_default();
    linux
        .security_context
        .get_or_insert_default()
        .namespace_options = Some(NamespaceOption {
        network: NamespaceMode::Node.into(),
        ..NamespaceOption::default()
    });
    let host = [
        Code::Unimplemented,
        Code::InvalidArgument,
        Code::FailedPrecondition,
    ];
    let answer = cri.run_pod_on("kvm", host_network).await;
    refused("host network in a VM", answer, &host)?;
    let mut named = pod("badname");
    named.hostname = "not a host name/".repeat(40);
    refused("an impossible host name", cri.run_pod(named).await, &codes)?;
    let mut sysctl = pod("sysctl");
    let linux = sysctl.linux.get_or_insert_default();
    linux
        .sysctls
        .insert("../../etc/passwd".to_owned(), "1".to_owned());
    refused("a sysctl that climbs", cri.run_pod(sysctl).await, &codes)?;
    let mut sysctl = pod("nosysctl");
    let linux = sysctl.linux.get_or_insert_default();
    linux
        .sysctls
        .insert("net.no.such".to_owned(), "1".to_owned());
    let answer = cri.run_pod(sysctl).await;
    let status = refused("a sysctl the guest lacks", answer, &codes[..1])?;
    check!(status.message().contains("net.no.such"), "{status:?}");
    let config = pod("twice");
    let id = cri.run_pod(config.clone()).await?;
    refused(
        "the same pod again",
        cri.run_pod(config).await,
        &[Code::AlreadyExists],
    )?;
    Ok(cri.remove_pod(&id).await?)
}

async fn what_is_not_there_says_unimplemented(context: &mut Context) -> Outcome {
    let mut runtime = context.cri.runtime.clone();
    let id = "0".repeat(32);
    let none = [Code::Unimplemented];
    let request = CheckpointContainerRequest {
        container_id: id.clone(),
        location: "/tmp/checkpoint".to_owned(),
        ..CheckpointContainerRequest::default()
    };
    let answer = runtime.checkpoint_container(request).await;
    refused("CheckpointContainer", answer, &none)?;
    let request = CheckpointPodRequest {
        pod_sandbox_id: id,
        ..CheckpointPodRequest::default()
    };
    refused(
        "CheckpointPod",
        runtime.checkpoint_pod(request).await,
        &none,
    )?;
    let request = RestorePodRequest::default();
    refused("RestorePod", runtime.restore_pod(request).await, &none)?;
    Ok(())
}

async fn guests_that_do_not_come_up(context: &mut Context) -> Outcome {
    let dir = context.results.join("broken");
    fs::create_dir_all(&dir)?;
    let file = |name: &str, data: &[u8]| -> Result<PathBuf, Failure> {
        let path = dir.join(name);
        fs::write(&path, data)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(path)
    };
    let no_kernel = file("nokernel", b"this is not a kernel")?;
    let dies = file("dies", b"#!/bin/sh\nexit 3\n")?;
    // An archive with nothing in it: the kernel panics for want of an init.
    let empty = file("empty.cpio", &[0; 512])?;
    // An init that never says anything.
    let silent = silent_initramfs(&dir)?;
    let internal = [
        Code::Internal,
        Code::FailedPrecondition,
        Code::Unavailable,
        Code::NotFound,
    ];
    let late = [Code::DeadlineExceeded, Code::Unavailable, Code::Internal];
    for (name, keys, codes) in [
        (
            "nofile",
            "kernel = \"/no/such/vmlinux\"\n".to_owned(),
            &internal[..],
        ),
        (
            "nokernel",
            format!("kernel = \"{}\"\n", no_kernel.display()),
            &internal,
        ),
        (
            "vmmdies",
            format!("binary = \"{}\"\n", dies.display()),
            &internal,
        ),
        (
            "noinit",
            format!("initramfs = \"{}\"\n", empty.display()),
            &late,
        ),
        (
            "silent",
            format!("initramfs = \"{}\"\n", silent.display()),
            &late[..1],
        ),
    ] {
        let sections = "[boot]\ntimeout_secs = 25\n".to_owned();
        let options = Options {
            vmm: keys,
            sections,
            ..Options::default()
        };
        let mut host = Host::start(name, &context.results, options).await?;
        let before = Snapshot::take(&host)?;
        let began = Instant::now();
        let answer = host.cri().await?.run_pod(pod(name)).await;
        refused(name, answer, codes)?;
        check!(
            began.elapsed().as_secs() < 80,
            "{name} took {:?}",
            began.elapsed()
        );
        before.compare(&host).await?;
        host.stop_daemon().await?;
        // The node's bridge came with its network; other tests count links.
        drop(leaks::output("ip", &["link", "del", &host.bridge()]));
    }
    Ok(())
}

/// An initramfs whose init sleeps: the guest runs, the agent never answers.
fn silent_initramfs(dir: &std::path::Path) -> Result<PathBuf, Failure> {
    let root = dir.join("silent");
    fs::create_dir_all(root.join("bin"))?;
    fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    let init = root.join("init");
    fs::write(&init, "#!/bin/busybox sh\nexec /bin/busybox sleep 100000\n")?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    let out = dir.join("silent.cpio");
    let script = format!(
        "cd {} && find . | cpio -o -H newc --quiet >{}",
        root.display(),
        out.display()
    );
    leaks::output("sh", &["-c", &script])?;
    Ok(out)
}

async fn a_full_disk(context: &mut Context) -> Outcome {
    let state = PathBuf::from("/run/full-disk");
    fs::create_dir_all(&state)?;
    let at = state.display().to_string();
    leaks::output("mount", &["-t", "tmpfs", "-o", "size=24m", "none", &at])?;
    let sections = "[sandbox]\nscratch_mib = 64\n".to_owned();
    let options = Options {
        state_dir: Some(state.clone()),
        sections,
        ..Options::default()
    };
    let mut host = Host::start("full", &context.results, options).await?;
    let cri = host.cri().await?;
    let answer = cri.pull(&image("bulk")).await;
    let status = refused(
        "a pull onto a full disk",
        answer,
        &[Code::ResourceExhausted],
    )?;
    check!(status.message().contains("free"), "{status:?}");
    let left: Vec<_> = fs::read_dir(state.join("images/layers"))?
        .filter_map(Result::ok)
        .map(|entry| entry.file_name())
        .collect();
    // Whole layers may stay for the next try; halves may not.
    check!(
        left.iter().all(|n| n.to_string_lossy().ends_with(".erofs")),
        "{left:?}"
    );
    // The node still answers and takes what fits.
    cri.pull(BUSYBOX).await?;
    host.stop_daemon().await?;
    leaks::output("umount", &[&at])?;
    Ok(())
}
