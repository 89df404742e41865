//! What survives the daemon, and what a dying VM takes with it.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::Path,
    process::Command,
};

use bulkhead_proto::cri::{ContainerState, PodSandboxConfig, PodSandboxState};
use bulkhead_runtime::logs::parse_line;
use tokio::time::Instant;

use super::{BUSYBOX, logs};
use crate::{
    Outcome, check,
    cri::{Cri, PATIENCE, pause, pod, script},
    suite::{Context, LIMIT, Test},
    test,
    waiting::Progress,
};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!("recovery", a_killed_daemon_finds_everything_again),
        test!(
            "recovery",
            a_gigabyte_of_output_is_logged_once_across_kills,
            LIMIT * 4
        ),
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
    let mut progress = Progress::default();
    for _ in 0..3 {
        let size = || fs::metadata(&path).map_or(0, |meta| meta.len());
        let was = size();
        while size() < was + 400 {
            progress.pause(size(), "the log to grow").await?;
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
        let length = u64::try_from(got.len())?;
        progress.pause(length, "all lines").await?;
    }
    Ok(cri.remove_pod(&id).await?)
}

/// Output of `ROUNDS` times `LINES` lines of 4,000 bytes, a billion and a few.
const ROUNDS: usize = 250;
const LINES: usize = 1000;

/// What line `number` of every round is, without its newline.
fn line(number: usize) -> String {
    format!("{number:0>3999}")
}

async fn a_gigabyte_of_output_is_logged_once_across_kills(context: &mut Context) -> Outcome {
    // On a disk, where logs are: the node's directory is shared with the machine.
    let dir = context.host.state_dir().with_extension("gigabyte");
    let config = PodSandboxConfig {
        log_directory: dir.display().to_string(),
        ..pod("gigabyte")
    };
    context.cri.pull(BUSYBOX).await?;
    let id = context.cri.run_pod(config.clone()).await?;
    let text = format!(
        "awk 'BEGIN {{ for (n = 0; n < {LINES}; n++) printf \"%03999d\\n\", n }}' >/tmp/block
         n=0; while [ $n -lt {ROUNDS} ]; do echo round $n; cat /tmp/block; n=$((n+1)); done"
    );
    let writer = logs::logged(script("writer", BUSYBOX, &text), "out.log");
    let writer = context.cri.run(&id, &config, writer).await?;
    let path = dir.join("out.log");
    let mut progress = Progress::default();
    let size = || fs::metadata(&path).map_or(0, |meta| meta.len());
    for kill_at in [150_000_000, 400_000_000, 401_000_000, 800_000_000] {
        while size() < kill_at {
            let what = format!("{kill_at} bytes in the log, it has {}", size());
            progress.pause(size(), &what).await?;
        }
        context.host.kill_daemon()?;
        context.host.start_daemon().await?;
        context.cri = context.host.cri().await?;
    }
    let cri = &context.cri;
    loop {
        let status = cri.status(&writer).await?;
        if status.state() == ContainerState::ContainerExited {
            check!(status.exit_code == 0, "{status:?}");
            break;
        }
        progress.pause(size(), "the writer to end").await?;
    }
    every_line_once(&path)?;
    cri.remove_pod(&id).await?;
    Ok(fs::remove_dir_all(&dir)?)
}

/// Reads the log line by line: it is too long to be held.
fn every_line_once(path: &Path) -> Outcome {
    let lines: Vec<String> = (0..LINES).map(line).collect();
    let mut log = BufReader::with_capacity(1 << 20, File::open(path)?);
    let (mut got, mut count, mut bytes) = (Vec::new(), 0, 0);
    while log.read_until(b'\n', &mut got)? > 0 {
        let (round, number) = (count / (LINES + 1), count % (LINES + 1));
        let parsed = parse_line(got.strip_suffix(b"\n").unwrap_or_default());
        let parsed = parsed.ok_or_else(|| format!("line {count} of the log is no log line"))?;
        let header = format!("round {round}");
        let expected = match number.checked_sub(1) {
            None => &header,
            Some(number) => &lines[number],
        };
        check!(
            parsed.full && parsed.content == expected.as_bytes(),
            "line {count} of the log is not line {number} of round {round} but {:?}…",
            String::from_utf8_lossy(&parsed.content[..parsed.content.len().min(40)])
        );
        bytes += parsed.length();
        count += 1;
        got.clear();
    }
    check!(
        count == ROUNDS * (LINES + 1) && bytes > 1_000_000_000,
        "{count} lines, {bytes} bytes"
    );
    Ok(())
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
