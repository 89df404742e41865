//! Execs as probes use them: killed whole when their time is up, ended when the command ends, and
//! nothing left of them. And the end of a terminal's output, which no client may miss.

use std::{fs, path::Path, process::Command as Program};

use bulkhead_proto::cri::ExecRequest;
use bulkhead_streaming::spdy::client::{Command, Ended};
use tokio::time::{Duration, Instant, sleep, timeout};
use tonic::Code;

use super::{BUSYBOX, crictl::Crictl};
use crate::{
    Failure, Outcome, check,
    cri::{Cri, PATIENCE, pause, pod, script},
    suite::{Context, Test},
    test,
};

const HANDLERS: [&str; 2] = ["kvm", "host"];

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!("exec_probes", a_timed_out_probe_leaves_no_process),
        test!(
            "exec_probes",
            a_background_process_does_not_hold_the_exec_up
        )
        .with_crictl(),
        test!("exec_probes", many_probes_leave_nothing),
        test!("exec_probes", a_slow_client_sees_the_end_of_a_terminal),
    ]
}

/// A pod on a handler with a container that waits.
async fn waiting(cri: &Cri, handler: &str, name: &str) -> Result<(String, String), Failure> {
    cri.pull(BUSYBOX).await?;
    let config = pod(&format!("{name}-{handler}"));
    let id = cri.run_pod_on(handler, config.clone()).await?;
    let text = "trap exit TERM; while :; do sleep 1000 & wait; done";
    let main = cri.run(&id, &config, script("main", BUSYBOX, text)).await?;
    Ok((id, main))
}

/// The processes of a container whose command line has a word; zombies have none.
async fn running(cri: &Cri, main: &str, word: &str) -> Result<usize, Failure> {
    // Not the looking command itself, which has the pattern in place of the word.
    let (first, rest) = word.split_at(1);
    let text = format!(
        "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -o '[{first}]{rest}' | wc -l"
    );
    Ok(cri.shell(main, &text).await?.trim().parse()?)
}

async fn a_timed_out_probe_leaves_no_process(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    for handler in HANDLERS {
        let (id, main) = waiting(cri, handler, "late").await?;
        for command in [
            "sleep 300; true",
            // A child, one in a session of its own, and one whose parent is gone.
            "sleep 300 & setsid sleep 300 & (setsid sleep 300 &); sleep 300; true",
            // It does not even read the signals that it can.
            "trap '' TERM INT HUP; sleep 300; true",
        ] {
            let began = Instant::now();
            let late = cri.exec_for(&main, &["/bin/sh", "-c", command], 2).await;
            println!(
                "{handler}: {command:?} was answered after {:?}",
                began.elapsed()
            );
            check!(
                late.as_ref()
                    .is_err_and(|s| s.code() == Code::DeadlineExceeded),
                "{handler}: {late:?}"
            );
            check!(
                began.elapsed() >= Duration::from_secs(2),
                "{handler}: too early"
            );
            let left = running(cri, &main, "sleep 300").await?;
            check!(
                left == 0,
                "{handler}: {left} processes of {command:?} are left"
            );
        }
        let left = running(cri, &main, "sleep 1000").await?;
        check!(left > 0, "{handler}: the container's own process is gone");
        cri.remove_pod(&id).await?;
    }
    Ok(())
}

async fn by_spdy(cri: &Cri, main: &str, command: &[&str], tty: bool) -> Result<Command, Failure> {
    let request = ExecRequest {
        container_id: main.to_owned(),
        cmd: command.iter().map(|word| (*word).to_owned()).collect(),
        tty,
        stdin: true,
        stdout: true,
        stderr: !tty,
    };
    let url = cri.runtime.clone().exec(request).await?.into_inner().url;
    let streams: &[&str] = if tty {
        &["stdin", "stdout"]
    } else {
        &["stdin", "stdout", "stderr"]
    };
    let mut command = Command::start(&url, streams).await?;
    if tty {
        // Clients open it, and the server waits for it.
        command.writer.open(&[("streamtype", "resize")]).await?;
    }
    Ok(command)
}

async fn end(mut command: Command) -> Result<Ended, Failure> {
    match timeout(PATIENCE, command.collect()).await {
        Ok(ended) => Ok(ended?),
        Err(_) => Err("waited too long for the end of an exec".into()),
    }
}

async fn a_background_process_does_not_hold_the_exec_up(context: &mut Context) -> Outcome {
    let crictl = Crictl::new(context)?;
    let cri = &context.cri;
    for handler in HANDLERS {
        let (id, main) = waiting(cri, handler, "behind").await?;
        let command = ["/bin/sh", "-c", "sleep 300 & seq 1 30000; echo hi"];
        let expected: String = (1..=30_000).map(|n| format!("{n}\n")).collect();
        let expected = expected + "hi\n";
        let done = cri.exec(&main, &command).await?;
        check!(
            done.exit_code == 0 && done.stdout == expected.as_bytes(),
            "{handler}: {} with {} bytes",
            done.exit_code,
            done.stdout.len()
        );
        let ended = end(by_spdy(cri, &main, &command, false).await?).await?;
        let status = String::from_utf8_lossy(&ended.status).into_owned();
        check!(status.contains("Success"), "{handler}: {status}");
        check!(
            ended.stdout == expected.as_bytes(),
            "{handler}: {} bytes",
            ended.stdout.len()
        );
        let output = crictl
            .program(&["exec", "-r", "websocket"])
            .arg(&main)
            .args(command)
            .output()?;
        check!(
            output.status.success() && output.stdout == expected.as_bytes(),
            "{handler}: {:?} with {} bytes",
            output.status,
            output.stdout.len()
        );
        // As a daemon that somebody starts by hand: they live on.
        let left = running(cri, &main, "sleep 300").await?;
        check!(left == 3, "{handler}: {left} background processes");
        cri.remove_pod(&id).await?;
    }
    Ok(())
}

fn zombies() -> Result<usize, Failure> {
    let mut count = 0;
    for entry in fs::read_dir("/proc")?.flatten() {
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
        count += usize::from(state.is_some_and(|rest| rest.starts_with('Z')));
    }
    Ok(count)
}

/// What is left of the last exec goes a moment after its answer.
async fn until_alone(cri: &Cri, main: &str) -> Outcome {
    let deadline = Instant::now() + PATIENCE;
    // The one that looks is there itself.
    while cri
        .shell(main, "ls -d /sys/fs/cgroup/exec-* | wc -l")
        .await?
        .trim()
        != "1"
    {
        pause(deadline, "the cgroups of execs to be gone").await?;
    }
    Ok(())
}

async fn many_probes_leave_nothing(context: &mut Context) -> Outcome {
    const PROBES: u32 = 60;
    let cri = &context.cri;
    for handler in HANDLERS {
        let (id, main) = waiting(cri, handler, "probed").await?;
        let (_, info) = cri.pod_status(&id).await?;
        let info: serde_json::Value =
            serde_json::from_str(info.get("info").map_or("null", String::as_str))?;
        let pid = info.get("pid").and_then(serde_json::Value::as_i64);
        let pid = pid.ok_or("no pid in the status")?;
        // The agent's on the host; the VMM's otherwise.
        let descriptors = || -> Result<usize, Failure> {
            Ok(fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd"))?.count())
        };
        cri.exec(&main, &["true"]).await?;
        until_alone(cri, &main).await?;
        let before = (zombies()?, descriptors()?);
        let began = Instant::now();
        for _ in 0..PROBES {
            let done = cri.exec_for(&main, &["true"], 60).await?;
            check!(done.exit_code == 0, "{handler}: {done:?}");
        }
        println!("{handler}: {PROBES} probes in {:?}", began.elapsed());
        until_alone(cri, &main).await?;
        let inside = "grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l";
        let inside = cri.shell(&main, inside).await?;
        check!(
            inside.trim() == "0",
            "{handler}: {inside} zombies in the container"
        );
        let deadline = Instant::now() + PATIENCE;
        while descriptors()? > before.1 || zombies()? > before.0 {
            pause(deadline, "descriptors and zombies to be as before").await?;
        }
        cri.remove_pod(&id).await?;
    }
    let left = Program::new("find")
        .args(["/sys/fs/cgroup", "-name", "exec-*"])
        .output()?;
    let left = String::from_utf8_lossy(&left.stdout).into_owned();
    check!(left.is_empty(), "cgroups on the node: {left}");
    Ok(())
}

#[allow(clippy::disallowed_methods)] // a reader that is slow, not a wait for anything
async fn a_slow_client_sees_the_end_of_a_terminal(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    let (id, main) = waiting(cri, "kvm", "slow").await?;
    let expected: String = (1..=200_000).map(|n| format!("{n}\r\n")).collect();
    for command in [
        &["seq", "1", "200000"][..],
        // Short of every buffer on the way: the command is long dead when the client reads.
        &["seq", "1", "3000"],
    ] {
        let command = by_spdy(cri, &main, command, true).await?;
        // That is the client: it reads nothing for so long.
        sleep(Duration::from_secs(5)).await;
        let ended = end(command).await?;
        let status = String::from_utf8_lossy(&ended.status).into_owned();
        check!(status.contains("Success"), "{status}");
        let whole = expected.as_bytes().starts_with(&ended.stdout)
            && [b"200000\r\n".as_slice(), b"3000\r\n"]
                .iter()
                .any(|last| ended.stdout.ends_with(last));
        check!(whole, "{} bytes of {}", ended.stdout.len(), expected.len());
    }
    Ok(cri.remove_pod(&id).await?)
}
