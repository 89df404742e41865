//! What survives the daemon, and what a dying VM takes with it.

use std::{fs, process::Command};

use bulkhead_proto::cri::{ContainerState, PodSandboxState};
use tokio::time::Instant;

use super::{BUSYBOX, logs};
use crate::{
    Outcome, check,
    cri::{Cri, PATIENCE, pause, pod, script},
    suite::{Context, Test},
    test,
};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!("recovery", a_killed_daemon_finds_everything_again),
        test!("recovery", a_stopped_daemon_leaves_pods_running),
        test!("recovery", a_killed_machine_is_told_and_freed),
        test!("recovery", a_guest_panic_is_told_with_its_console),
    ]
}

async fn a_killed_daemon_finds_everything_again(context: &mut Context) -> Outcome {
    let (config, dir) = logs::logging_pod(context, "kill9");
    context.cri.pull(BUSYBOX).await?;
    let id = context.cri.run_pod(config.clone()).await?;
    let text = "n=0; while [ $n -lt 600 ]; do n=$((n+1)); echo $n; usleep 20000; done; sleep 1000";
    let writer = logs::logged(script("writer", BUSYBOX, text), "writer.log");
    let writer = context.cri.run(&id, &config, writer).await?;
    let brief = logs::logged(
        script("brief", BUSYBOX, "usleep 3000000; exit 9"),
        "brief.log",
    );
    let brief = context.cri.run(&id, &config, brief).await?;
    let path = dir.join("writer.log");
    let deadline = Instant::now() + PATIENCE * 2;
    for _ in 0..3 {
        let size = || fs::metadata(&path).map_or(0, |meta| meta.len());
        let was = size();
        while size() < was + 400 {
            pause(deadline, "the log to grow").await?;
        }
        context.host.kill_daemon()?;
        context.host.start_daemon().await?;
        context.cri = context.host.cri().await?;
    }
    let cri = &context.cri;
    let (status, _) = cri.pod_status(&id).await?;
    check!(
        status.state() == PodSandboxState::SandboxReady,
        "{status:?}"
    );
    check!(
        cri.status(&writer).await?.state() == ContainerState::ContainerRunning,
        "writer"
    );
    check!(
        cri.exited(&brief).await?.exit_code == 9,
        "the exit while no daemon ran"
    );
    cri.shell(&writer, "true").await?;
    let expected: String = (1..=600).map(|n| format!("{n}\n")).collect();
    loop {
        let got = logs::read(&path, "stdout")?;
        check!(
            got.len() <= expected.len(),
            "written twice: {} bytes",
            got.len()
        );
        if got == expected.as_bytes() {
            break;
        }
        check!(
            expected.as_bytes().starts_with(&got),
            "lost or doubled: {}",
            String::from_utf8_lossy(&got)
        );
        pause(deadline, "all lines").await?;
    }
    Ok(cri.remove_pod(&id).await?)
}

async fn a_stopped_daemon_leaves_pods_running(context: &mut Context) -> Outcome {
    context.cri.pull(BUSYBOX).await?;
    let config = pod("restart");
    let id = context.cri.run_pod(config.clone()).await?;
    let made = context
        .cri
        .run(&id, &config, script("main", BUSYBOX, "sleep 1000"))
        .await?;
    let started = context
        .cri
        .shell(&made, "cat /proc/sys/kernel/random/boot_id")
        .await?;
    context.host.stop_daemon().await?;
    context.host.start_daemon().await?;
    context.cri = context.host.cri().await?;
    let now = context
        .cri
        .shell(&made, "cat /proc/sys/kernel/random/boot_id")
        .await?;
    check!(started == now, "the guest was started anew");
    let second = context
        .cri
        .run(&id, &config, script("second", BUSYBOX, "sleep 1000"))
        .await?;
    context.cri.shell(&second, "true").await?;
    Ok(context.cri.remove_pod(&id).await?)
}

/// Waits until the pod is not ready and its container has exited.
async fn dead(cri: &Cri, pod: &str, container: &str) -> Outcome {
    let deadline = Instant::now() + PATIENCE;
    while cri.pod_status(pod).await?.0.state() == PodSandboxState::SandboxReady {
        pause(deadline, "the pod to be not ready").await?;
    }
    let status = cri.exited(container).await?;
    check!(
        status.exit_code != 0 && !status.reason.is_empty(),
        "{status:?}"
    );
    let exec = cri.exec(container, &["true"]).await;
    check!(exec.is_err(), "exec in a dead pod: {exec:?}");
    Ok(())
}

async fn a_killed_machine_is_told_and_freed(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let config = pod("vmkill");
    let id = cri.run_pod(config.clone()).await?;
    let made = cri
        .run(&id, &config, script("main", BUSYBOX, "sleep 1000"))
        .await?;
    let done = Command::new("pkill")
        .args(["-KILL", "-x", "bulkhead-vmm"])
        .status()?;
    check!(done.success(), "no process to kill");
    dead(cri, &id, &made).await?;
    cri.stop(&made, 5).await?;
    cri.remove(&made).await?;
    Ok(cri.remove_pod(&id).await?)
}

async fn a_guest_panic_is_told_with_its_console(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let mut config = pod("panic");
    if let Some(linux) = &mut config.linux {
        linux.security_context.get_or_insert_default().privileged = true;
    }
    let id = cri.run_pod(config.clone()).await?;
    // A guest may panic itself: the kernel is told to, and runs out of the container's memory.
    let text = "sleep 2; echo 2 > /proc/sys/vm/panic_on_oom; dd if=/dev/zero of=/dev/null bs=64M count=1; sleep 1000";
    let mut main = script("main", BUSYBOX, text);
    let linux = main.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().privileged = true;
    linux
        .resources
        .get_or_insert_default()
        .memory_limit_in_bytes = 16 << 20;
    let made = cri.run(&id, &config, main).await?;
    dead(cri, &id, &made).await?;
    let (_, info) = cri.pod_status(&id).await?;
    let text = info.values().cloned().collect::<String>();
    check!(
        text.contains("panic"),
        "the status does not tell why: {text}"
    );
    Ok(cri.remove_pod(&id).await?)
}
