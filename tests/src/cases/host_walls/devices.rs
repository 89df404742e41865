//! Which of the node's devices a container on the handler `host` can open.

use std::{fs, os::unix::fs::MetadataExt as _};

use bulkhead_proto::cri::{
    LinuxContainerSecurityContext, NamespaceMode, NamespaceOption, security_profile::ProfileType,
};

use super::{
    super::contexts::{capabilities, profile, with},
    support::{HOST, privileged_pod},
};
use crate::{
    Outcome,
    cases::BUSYBOX,
    check,
    cri::{pod, script},
    suite::{Context, Test},
    test,
};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(
            "host_walls",
            devices_of_the_node_are_for_privileged_containers
        ),
        test!("host_walls", the_nodes_null_device_stays_as_it_is),
    ]
}

/// The node's, and nobody's in particular.
const DEVICE: &str = "/dev/loop-control";

async fn devices_of_the_node_are_for_privileged_containers(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let config = pod("devices-of-the-node");
    let id = cri.run_pod_on(HOST, config.clone()).await?;
    let open = format!("exec 3<>{DEVICE}");
    let privileged = with(
        script("privileged", BUSYBOX, "sleep 1000"),
        LinuxContainerSecurityContext {
            privileged: true,
            ..LinuxContainerSecurityContext::default()
        },
    );
    let made = cri.run(&id, &privileged_pod(&config), privileged).await?;
    cri.shell(&made, &open).await?;
    // One that can make the node itself, with no profile in the way.
    let strong = with(
        script("strong", BUSYBOX, "sleep 1000"),
        LinuxContainerSecurityContext {
            capabilities: capabilities(&["MKNOD"], &[]),
            apparmor: profile(ProfileType::Unconfined),
            seccomp: profile(ProfileType::Unconfined),
            ..LinuxContainerSecurityContext::default()
        },
    );
    let made = cri.run(&id, &config, strong).await?;
    let absent = format!("test ! -e {DEVICE}");
    cri.shell(&made, &absent).await?;
    // /dev/null once more shows that nodes can be made and opened.
    cri.shell(&made, "mknod /null c 1 3 && exec 3<>/null")
        .await?;
    for (name, number) in [("loop-control", "10 237"), ("console", "5 1")] {
        let open = format!("mknod /{name} c {number} && exec 3<>/{name}");
        let done = cri.exec(&made, &["/bin/sh", "-c", &open]).await?;
        let told = String::from_utf8_lossy(&done.stderr);
        check!(
            done.exit_code != 0 && told.contains("Operation not permitted"),
            "{name}: {done:?}"
        );
    }
    Ok(cri.remove_pod(&id).await?)
}

async fn the_nodes_null_device_stays_as_it_is(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let node = || -> Result<_, crate::Failure> {
        let meta = fs::metadata("/dev/null")?;
        Ok((meta.mode(), meta.uid(), meta.gid(), meta.ctime()))
    };
    let before = node()?;
    for handler in [HOST, "kvm"] {
        let config = pod(&format!("null-{handler}"));
        let id = cri.run_pod_on(handler, config.clone()).await?;
        let made = with(
            script("null", BUSYBOX, "sleep 1000"),
            LinuxContainerSecurityContext {
                apparmor: profile(ProfileType::Unconfined),
                namespace_options: Some(NamespaceOption {
                    pid: NamespaceMode::Container.into(),
                    ..NamespaceOption::default()
                }),
                masked_paths: vec!["/proc/version".to_owned(), "/proc/uptime".to_owned()],
                ..LinuxContainerSecurityContext::default()
            },
        );
        let made = cri.run(&id, &config, made).await?;
        // Standard input of the first process and of an exec, and what is hidden.
        for path in [
            "/proc/1/fd/0",
            "/proc/self/fd/0",
            "/proc/version",
            "/proc/uptime",
        ] {
            for change in ["chmod 600", "chown 1000"] {
                let line = format!("{change} {path}");
                let done = cri.exec(&made, &["/bin/sh", "-c", &line]).await?;
                let told = String::from_utf8_lossy(&done.stderr);
                check!(
                    done.exit_code != 0 && told.contains("Read-only file system"),
                    "{handler}: {line}: {done:?}"
                );
            }
            let read = cri.shell(&made, &format!("cat {path}")).await?;
            check!(read.is_empty(), "{handler}: {path}: {read:?}");
        }
        // It takes what is written all the same.
        cri.shell(&made, "echo x >/proc/version").await?;
        cri.remove_pod(&id).await?;
        check!(node()? == before, "{handler}: {:?}, {before:?}", node()?);
    }
    Ok(())
}
