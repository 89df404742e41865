//! Which of the node's devices a container on the handler `host` can open.

use bulkhead_proto::cri::{LinuxContainerSecurityContext, security_profile::ProfileType};

use super::{HOST, capabilities, named, privileged_pod, with};
use crate::{
    Outcome,
    cases::BUSYBOX,
    check,
    cri::{pod, script},
    suite::{Context, Test},
    test,
};

pub(super) fn tests() -> Vec<Test> {
    vec![test!(
        "host_walls",
        devices_of_the_node_are_for_privileged_containers
    )]
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
            apparmor: named(ProfileType::Unconfined),
            seccomp: named(ProfileType::Unconfined),
            ..LinuxContainerSecurityContext::default()
        },
    );
    let made = cri.run(&id, &config, strong).await?;
    let absent = format!("test ! -e {DEVICE}");
    cri.shell(&made, &absent).await?;
    // Of major number 10, minor 237; /dev/null again shows that nodes can be made and opened.
    cri.shell(&made, "mknod /null c 1 3 && exec 3<>/null")
        .await?;
    let done = cri
        .exec(
            &made,
            &[
                "/bin/sh",
                "-c",
                "mknod /control c 10 237 && exec 3<>/control",
            ],
        )
        .await?;
    let told = String::from_utf8_lossy(&done.stderr);
    check!(
        done.exit_code != 0 && told.contains("Operation not permitted"),
        "{done:?}"
    );
    Ok(cri.remove_pod(&id).await?)
}
